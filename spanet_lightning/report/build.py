"""The files of a report: Markdown, HTML, LaTeX tables, JSON, CSV and figures."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from spanet_lightning.errors import ConfigError
from spanet_lightning.report import ablation, search
from spanet_lightning.report import formatting as fmt
from spanet_lightning.report.arms import ArmResult, arm_results, metric_names
from spanet_lightning.report.document import (
    Block,
    Column,
    Commands,
    Items,
    Report,
    Section,
    Table,
)
from spanet_lightning.report.results import Results, Trial
from spanet_lightning.tables import csv_cell

SCHEMA = "spanet-report/2"
FORMATS = {"html": "report.html", "markdown": "report.md", "latex": "tables.tex"}


def build_report(results: Results) -> Report:
    """Return what the report of a study says."""
    study = results.study
    if study.is_ablation:
        arms = arm_results(results)
        verdict, tone = ablation.verdict(results, arms)
        own = ablation.sections(results, arms)
        caveats = ablation.warnings(results, arms)
    else:
        verdict, tone = search.verdict(results)
        own, caveats = search.sections(results), search.warnings(results)
    return Report(
        name=study.name,
        kind="ablation" if study.is_ablation else "search",
        question=study.question,
        verdict=verdict,
        tone=tone,
        facts=_facts(results),
        warnings=[*_warnings(results), *caveats],
        sections=[
            *own,
            Section("Budget", _budget(results)),
            Section("Provenance", _provenance(results)),
            Section("Experiment", _experiment(results)),
        ],
    )


def report_files(
    results: Results, report: Report, formats: Iterable[str] = FORMATS
) -> dict[str, bytes]:
    """Return the content of each file by its path in the report's folder.

    Args:
        results: What is stored of the study.
        report: What the report says.
        formats: Keys of `FORMATS`; JSON, CSV and figures come with each.
    """
    files = {FORMATS[name]: render(report, name).encode() for name in formats}
    files["report.json"] = _json(results, report).encode()
    files["trials.csv"] = _csv(_trial_row(results, trial) for trial in results.trials)
    if results.study.is_ablation:
        files["arms.csv"] = _csv(_arm_row(results, arm) for arm in arm_results(results))
    for figure in report.figures:
        files |= {f"{figure.name}.svg": figure.svg, f"{figure.name}.png": figure.png}
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, each whole or not at all.

    Raises:
        ConfigError: If the folder can't be written.
    """
    try:
        for name, content in files.items():
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


def render(report: Report, name: str) -> str:
    """Render a report in one of `FORMATS`; texts are escaped, so that no name becomes markup."""
    template = f"{FORMATS[name]}.j2"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spanet_lightning.report"),
        autoescape=name == "html",  # noqa: S701 - `finalize` escapes Markdown and LaTeX
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=None if name == "html" else _ESCAPES[name],
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["slug"] = lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower())
    environment.filters["data_uri"] = lambda data: (
        f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}"
    )
    environment.filters["code"] = _markdown_code
    return environment.get_template(template).render(report=report)


class _Raw(str):
    """Text that is escaped already."""


def _markdown(value: Any) -> str:
    text = str(value)
    if isinstance(value, _Raw):
        return text
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", text).replace("\n", " ")


def _markdown_code(value: str) -> str:
    if value in ("", fmt.NONE):
        return value
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", value)), default=0))
    pad = " " if "`" in value else ""
    return _Raw(f"{fence}{pad}{value}{pad}{fence}".replace("|", "\\|").replace("\n", " "))


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "–": "--",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "○": r"$\circ$",
    "⚑": r"$\dagger$",
    "\N{NO-BREAK SPACE}": "~",
}


def _latex(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    return "".join(_LATEX.get(character, character) for character in str(value))


_ESCAPES: dict[str, Callable[[Any], str]] = {"markdown": _markdown, "latex": _latex}


# -- what every report says


def _facts(results: Results) -> list[tuple[str, str]]:
    study, budget = results.study, results.budget
    if study.is_ablation:
        method = results.ablation
        facts = [("arms", str(len(method.arms))), ("seeds per arm", str(len(method.seeds)))]
    else:
        facts = [("sampler", str(getattr(study.method, "sampler", "")))]
    of = "" if budget.declared is None else f" of {budget.declared}"
    facts.append(("trials", f"{budget.complete + budget.pruned}{of}"))
    facts.append(("training hours", fmt.three_digits(budget.hours)))
    hardware = _distinct(results, lambda t: t.record.hardware)
    if hardware:
        one = hardware[0] if len(hardware) == 1 else f"{len(hardware)} kinds"
        facts.append(("hardware", one))
    return facts


def _warnings(results: Results) -> list[str]:
    budget, found = results.budget, []
    if budget.unfinished:
        of = "" if budget.declared is None else f" of {budget.declared}"
        found.append(
            f"Unfinished: {budget.complete + budget.pruned}{of} trials have ended, "
            f"{budget.running} are running, {budget.waiting} are waiting."
        )
    dirty = [str(t.number) for t in results.complete if t.record.dirty]
    if dirty:
        shown = ", ".join(dirty[:8]) + (", …" if len(dirty) > 8 else "")
        found.append(
            f"The working tree had uncommitted changes in {fmt.counted(len(dirty), 'trial')} "
            f"({shown}): the commit alone does not reproduce them."
        )
    kinds: dict[str, Callable[[Trial], str]] = {
        "commit": lambda t: t.record.commit[:10],
        "data set": lambda t: t.record.data,
        "kind of hardware": lambda t: t.record.hardware,
    }
    for name, read in kinds.items():
        values = _distinct(results, read)
        if len(values) > 1:
            found.append(f"Trials differ in {name}: {fmt.listed(values)}.")
    return found


def _budget(results: Results) -> list[Block]:
    budget = results.budget
    counts = {
        "declared": fmt.NONE if budget.declared is None else budget.declared,
        **{
            name: getattr(budget, name)
            for name in (
                "complete",
                "pruned",
                "failed",
                "stopped",
                "dropped",
                "retried",
                "running",
                "waiting",
            )
        },
        "hours, all trials": fmt.three_digits(budget.hours),
        "wall-clock hours": fmt.three_digits(budget.elapsed),
    }
    blocks: list[Block] = [
        Table("Trials", [Column(name) for name in counts], [[str(v) for v in counts.values()]])
    ]
    failed = [t for t in results.trials if t.state == "FAIL" and t.record.failure != "dropped"]
    if failed:
        retries = {t.record.retry_of: str(t.number) for t in results.trials}
        blocks.append(
            Table(
                "Failures",
                [
                    Column("trial"),
                    *(Column(name, numeric=False) for name in ("what", "failure", "reason")),
                    Column("retried as"),
                ],
                [
                    [
                        str(t.number),
                        _label(t),
                        t.record.failure or "killed",
                        t.record.reason or "its worker ended without a message",
                        retries.get(t.number, fmt.NONE),
                    ]
                    for t in failed
                ],
            )
        )
    return blocks


_ORIGINS: dict[str, Callable[[Trial], str]] = {
    "commit": lambda t: t.record.commit[:10] + ("+" if t.record.dirty else ""),
    "data": lambda t: t.record.data,
    "hardware": lambda t: t.record.hardware,
    "config": lambda t: t.record.config_hash[:10],
    "run": lambda t: t.record.run_id,
}


def _provenance(results: Results) -> list[Block]:
    ended = [t for t in results.trials if t.complete or t.state == "PRUNED"]
    if not ended:
        return []
    origins = {name: [read(t) for t in ended] for name, read in _ORIGINS.items()}
    common = {name: v[0] for name, v in origins.items() if len(set(v)) == 1 and len(ended) > 1}
    blocks: list[Block] = []
    if results.run_id:
        blocks.append(f"MLflow run of the study: {results.run_id}.")
    if any(common.values()):
        listed = "; ".join(f"{name} {value}" for name, value in common.items() if value)
        blocks.append(f"Common to all trials: {listed}.")
    columns = {name: values for name, values in origins.items() if name not in common}
    blocks.append(
        Table(
            "Origin of each value",
            [
                Column("trial"),
                Column("what", numeric=False),
                Column("state", numeric=False),
                Column(results.study.objectives[0].metric),
                *(Column(name, numeric=False, code=True) for name in columns),
            ],
            [
                [
                    str(t.number),
                    _label(t),
                    t.state.lower(),
                    fmt.plain(t.values[0]) if t.values else fmt.NONE,
                    *(values[i] for values in columns.values()),
                ]
                for i, t in enumerate(ended)
            ],
            ["+: with uncommitted changes."] if any(t.record.dirty for t in ended) else [],
        )
    )
    commands = [(f"trial {t.number}: {_label(t)}", _command(t)) for t in ended]
    blocks.append(Commands("Commands that repeat the trials", commands))
    return blocks


def _experiment(results: Results) -> list[Block]:
    study = results.study
    objectives = "; ".join(
        f"{o.metric} ({'larger' if o.sign > 0 else 'smaller'} is better, {o.at} epoch"
        + (f", margin ±{fmt.plain(o.margin)})" if o.margin is not None else ")")
        for o in study.objectives
    )
    items = [
        ("Configuration", ", ".join(study.configs)),
        ("Changed for all trials", ablation.format_overrides(study.overrides) or "nothing"),
        ("Objective", objectives),
        ("Definition", f"study {study.name}, fingerprint {study.digest()}"),
    ]
    return [*([study.note] if study.note else []), Items(items)]


def _label(trial: Trial) -> str:
    arm = trial.record.arm or trial.params.get("arm")
    if arm:
        return f"{arm}, seed {trial.record.seed if trial.record.arm else trial.params.get('seed')}"
    return ", ".join(
        f"{name} = {fmt.plain(value) if isinstance(value, float) else value}"
        for name, value in trial.params.items()
    )


def _command(trial: Trial) -> str:
    command = trial.record.command
    return shlex.join(("lightning", *command) if command[:1] == ("fit",) else command)


def _distinct(results: Results, read: Callable[[Trial], str]) -> list[str]:
    """Return the values of complete trials, the most frequent first."""
    counts = Counter(read(t) for t in results.complete)
    return [value for value, _ in counts.most_common() if value]


# -- data


def _json(results: Results, report: Report) -> str:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "study": results.study.as_dict(),
        "definition": results.study.digest(),
        "run_id": results.run_id,
        "verdict": report.verdict,
        "warnings": list(report.warnings),
        "budget": {**asdict(results.budget), "unfinished": results.budget.unfinished},
    }
    if results.study.is_ablation:
        arms = arm_results(results)
        document["arms"] = [
            {
                **_arm_row(results, arm),
                "not compared because": arm.refusal,
                "values": {name: dict(q.values) for name, q in arm.quantities.items()},
                "differences": arm.comparison and list(arm.comparison.differences),
                "trials": [trial.number for trial in arm.trials],
            }
            for arm in arms
        ]
    document["trials"] = [
        {**_trial_row(results, trial), "curve": [list(point) for point in trial.curve]}
        for trial in results.trials
    ]
    return json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"


def _arm_row(results: Results, arm: ArmResult) -> dict[str, Any]:
    comparison = arm.comparison
    row: dict[str, Any] = {
        "arm": arm.arm.name,
        "control": arm.is_control,
        "seeds": len(arm.trials),
    }
    for name in metric_names(results):
        quantity = arm.quantities[name]
        interval = None if arm.is_control else quantity.interval
        row[f"{name} mean"], row[f"{name} sd"] = quantity.mean, quantity.sd
        row[f"{name} difference"] = None if arm.is_control else quantity.difference
        row[f"{name} ci low"] = interval and interval.low
        row[f"{name} ci high"] = interval and interval.high
    verdict = "control" if arm.is_control else "not compared"
    return row | {
        "p": comparison and comparison.p,
        "p holm": comparison and comparison.holm_p,
        "p holm minimum": comparison and comparison.min_holm_p,
        "p equivalence": comparison and comparison.equivalence_p,
        "verdict": comparison.verdict if comparison else verdict,
        "seeds needed": comparison and comparison.seeds_needed,
        "detectable difference": comparison and comparison.detectable,
        "parameters": arm.parameters,
        "macs": arm.macs,
        "macs relative": arm.relative_macs,
        "macs flagged": arm.differs_in_cost,
        "images_per_second": arm.images_per_second,
        "train_seconds": arm.train_seconds,
        "published": arm.arm.published,
    }


_RECORDED = ("run_id", "commit", "dirty", "config_hash", "data", "hardware", "folder")
_MEASURED = ("best_epoch", "parameters", "macs", "images_per_second", "train_seconds")


def _trial_row(results: Results, trial: Trial) -> dict[str, Any]:
    record, failed = trial.record, trial.state == "FAIL"
    row: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state,
        **{name: getattr(record, name) for name in ("arm", "seed", "attempt", "retry_of")},
    }
    for i, objective in enumerate(results.study.objectives):
        row[objective.metric] = trial.values[i] if trial.complete else None
    if results.study.test:
        row[results.study.test] = record.test.get(results.study.test)
    return row | {
        **{name: getattr(record, name) for name in _MEASURED},
        "hours": trial.hours,
        # While a trial runs, its record says how it ends if its worker is killed.
        "failure": record.failure if failed else None,
        "reason": record.reason if failed else "",
        **{name: getattr(record, name) for name in _RECORDED},
        "params": dict(trial.params),
        "overrides": dict(record.overrides),
        "command": list(record.command),
    }


def _csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    written = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(written, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: csv_cell(_text(value)) for key, value in row.items()})
    return written.getvalue().encode()


def _text(value: Any) -> Any:
    """Return a value for a CSV: mappings and lists as JSON."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return _finite(value)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON can't express by null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
