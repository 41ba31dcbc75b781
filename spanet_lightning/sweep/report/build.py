"""From a study to the files of its report."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.report import ablation, account, png, searching, svg
from spanet_lightning.sweep.report.arms import Row, metric_names, rows
from spanet_lightning.sweep.report.document import Document
from spanet_lightning.sweep.report.gather import Gathered, Trial
from spanet_lightning.sweep.report.markdown import markdown
from spanet_lightning.sweep.report.page import page
from spanet_lightning.sweep.statistics import ALPHA, Interval

SCHEMA = "spanet-report/1"


def document(found: Gathered) -> Document:
    """Return what the report says.

    Args:
        found: The study, verified.
    """
    if found.study.is_ablation:
        made = rows(found)
        verdict, tone = ablation.verdict(found, made)
        special, more = ablation.sections(found, made), ablation.warnings(made)
    else:
        verdict, tone = searching.verdict(found)
        special, more = searching.sections(found), []
    return Document(
        name=found.study.name,
        question=found.study.question,
        verdict=verdict,
        tone=tone,
        facts=account.facts(found),
        warnings=(*account.warnings(found), *more),
        sections=(*special, *account.sections(found)),
    )


def files(found: Gathered, told: Document | None = None) -> dict[str, bytes]:
    """Return the files of the report by their path in its folder.

    PNG figures are among them where matplotlib is installed.

    Args:
        found: The study, verified.
        told: What `document` made of it, where that is at hand.
    """
    told = told or document(found)
    kind = "ablation" if found.study.is_ablation else "search"
    made = {
        "report.md": markdown(told),
        "report.html": page(told, kind),
        "report.json": _json(found, told),
        "trials.csv": _csv(_trial(found, trial) for trial in found.trials),
    }
    if found.study.is_ablation:
        made["arms.csv"] = _csv(_arm(found, row) for row in rows(found))
    made |= {f"figures/{scene.name}.svg": svg.standalone(scene) for scene in told.scenes}
    written = {name: text.encode() for name, text in made.items()}
    if png.available():
        written |= {f"figures/{scene.name}.png": png.png(scene) for scene in told.scenes}
    return written


def write(folder: Path, made: Mapping[str, bytes]) -> None:
    """Write files, each whole or not at all.

    Args:
        folder: Made where it is missing.
        made: Content by path in the folder.

    Raises:
        ConfigError: If it can't be written there.
    """
    try:
        for name, content in made.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                unfinished.write_bytes(content)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: got {str(folder)!r}, which can't be written ({error.strerror})"
        ) from None


def _json(found: Gathered, told: Document) -> str:
    """Return everything as data: the numbers that the report writes, unrounded."""
    whole: dict[str, Any] = {
        "schema": SCHEMA,
        "study": found.study.as_dict(),
        "definition": found.study.digest(),
        "run_id": found.run_id,
        "verdict": told.verdict,
        "warnings": list(told.warnings),
        "budget": {**asdict(found.budget), "unfinished": found.budget.unfinished},
    }
    if found.study.is_ablation:
        whole["alpha"] = ALPHA
        whole["arms"] = [_arm(found, row, nested=True) for row in rows(found)]
    whole["trials"] = [_trial(found, trial, nested=True) for trial in found.trials]
    return json.dumps(_finite(whole), indent=1, ensure_ascii=False) + "\n"


def _arm(found: Gathered, row: Row, *, nested: bool = False) -> dict[str, Any]:
    compared = row.comparison
    flat: dict[str, Any] = {
        "arm": row.arm.name,
        "control": row.is_control,
        "seeds": len(row.trials),
    }
    for name in metric_names(found):
        quantity = row.quantities[name]
        flat[f"{name} mean"] = quantity.mean
        flat[f"{name} sd"] = quantity.sd
        flat[f"{name} difference"] = None if row.is_control else quantity.difference
        flat |= _interval(name, None if row.is_control else quantity.interval)
    flat |= {
        "p": compared and compared.p,
        "p least possible": compared and compared.least_p,
        "p holm": compared and compared.holm_p,
        "verdict": "control" if row.is_control else "not compared",
        "parameters": row.parameters,
        "macs": row.macs,
        "macs relative": row.relative_macs,
        "macs flagged": row.costly,
        "images_per_second": row.images_per_second,
        "train_seconds": row.train_seconds,
        "published": row.arm.published,
    }
    if compared is not None:
        flat["verdict"] = compared.verdict
    if nested:
        flat["not compared because"] = row.refused
        flat["values"] = {
            name: {str(seed): value for seed, value in quantity.values.items()}
            for name, quantity in row.quantities.items()
        }
        flat["differences"] = None if compared is None else list(compared.differences)
        flat["trials"] = [trial.number for trial in row.trials]
    return flat


def _interval(name: str, found: Interval | None) -> dict[str, Any]:
    return {
        f"{name} ci low": found and found.low,
        f"{name} ci high": found and found.high,
        f"{name} ci method": found and found.method,
    }


def _trial(found: Gathered, trial: Trial, *, nested: bool = False) -> dict[str, Any]:
    record = trial.record
    flat: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state,
        "arm": record.arm,
        "seed": record.seed,
        "attempt": record.attempt,
        "retry_of": record.retry_of,
    }
    for i, objective in enumerate(found.study.objectives):
        flat[objective.metric] = trial.values[i] if trial.complete else None
    if found.study.test:
        flat[found.study.test] = record.test.get(found.study.test)
    flat |= {
        "best_epoch": record.best_epoch,
        "parameters": record.parameters,
        "macs": record.macs,
        "images_per_second": record.images_per_second,
        "train_seconds": record.train_seconds,
        "hours": trial.hours,
        # Of a trial that runs, the record says how it ends if its worker is killed.
        "failure": record.failure if trial.state == "FAIL" else None,
        "reason": record.reason if trial.state == "FAIL" else "",
        "run_id": record.run_id,
        "commit": record.commit,
        "dirty": record.dirty,
        "config_hash": record.config_hash,
        "data": record.data,
        "hardware": record.hardware,
        "folder": record.folder,
        "params": dict(trial.params),
        "overrides": dict(record.overrides),
        "command": list(record.command),
    }
    if nested:
        flat["curve"] = [list(point) for point in trial.curve]
        return flat
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in flat.items()
    }


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    written = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for line in lines:
        if writer is None:
            writer = csv.DictWriter(written, list(line), lineterminator="\n")
            writer.writeheader()
        writer.writerow(_finite(line))
    return written.getvalue()


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
