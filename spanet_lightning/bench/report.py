"""The JSON document of a benchmark, and what a tracker takes of it."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spanet_lightning.bench.ceiling import Ceiling
from spanet_lightning.bench.models import Row
from spanet_lightning.bench.timing import spread
from spanet_lightning.errors import ConfigError
from spanet_lightning.machine import commit, versions

SCHEMA = "spanet-bench/1"

Document = dict[str, Any]


def document(
    benchmark: str,
    command: Sequence[str],
    settings: Any,
    results: Sequence[Row],
    ratios: Sequence[Row],
    *,
    machine: Row,
    ceiling: Ceiling | None = None,
    **more: Any,
) -> Document:
    """Return the document; the package's docstring says what is in it.

    Args:
        benchmark: Its name.
        command: The command line.
        settings: A dataclass.
        results: What was measured.
        ratios: What was compared.
        machine: Where, as `machine.machine` told before the measurement.
        ceiling: The machine's rates, where they were measured.
        more: Keys that only this benchmark has.
    """
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine": machine,
        "versions": versions(),
        "commit": commit(),
        "settings": asdict(settings),
        "ceiling": None if ceiling is None else asdict(ceiling),
        "results": list(results),
        "ratios": list(ratios),
        **more,
    }


def check_target(key: str, file: str) -> Path:
    """Return the path of a file that is to be written, before anything is measured.

    Raises:
        ConfigError: If it can't be written there.
    """
    path = Path(file)
    if not path.parent.is_dir():
        raise ConfigError(f"{key}: got {file!r}, but there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{key}: got {file!r}, which is a folder, expected a file")
    return path


def write_json(path: Path, found: Document) -> None:
    """Write the document."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def metrics(found: Document) -> dict[str, float]:
    """Return the document's medians under names for a tracker: `eval/spanet_s/seconds`."""
    values = {}
    for row in found["results"]:
        parts = [row["mode"], row["subject"], row.get("impl"), row.get("size")]
        name = "/".join(str(part) for part in parts if part is not None)
        values[f"{name}/seconds"] = spread(row["seconds"]).median
        if row.get("memory"):
            values[f"{name}/peak_bytes"] = float(row["memory"]["peak"])
    for row in found["ratios"]:
        parts = [row["mode"], row["subject"], "over", row["against"], row.get("size")]
        name = "/".join(str(part) for part in parts if part is not None)
        values[f"{name}/speedup"] = row["speedup"]["median"]
    return values
