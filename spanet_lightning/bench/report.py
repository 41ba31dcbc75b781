"""What a benchmark leaves behind: a JSON document, timm's CSV columns, tables on the terminal."""

from __future__ import annotations

import csv
import datetime
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from spanet_lightning.bench.timing import Ceiling, Row, spread
from spanet_lightning.errors import ConfigError
from spanet_lightning.machine import commit, versions
from spanet_lightning.summary import console

SCHEMA = "spanet-bench/2"
_NONE = "–"

Document = dict[str, Any]


def build_document(
    benchmark: str,
    command: Sequence[str],
    settings: Any,
    results: Sequence[Row],
    ratios: Sequence[Row],
    *,
    machine: Row,
    ceiling: Ceiling | None = None,
) -> Document:
    """Return the document that the package's docstring describes.

    Args:
        benchmark: Its name.
        command: The command line.
        settings: A dataclass.
        results: What was measured.
        ratios: What was compared.
        machine: Description of the machine, taken before the measurement.
        ceiling: The machine's rates, where they were measured.
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
    }


def check_target(key: str, file: str) -> Path:
    """Return the path of a file to be written, before anything is measured.

    Raises:
        ConfigError: If it can't be written there.
    """
    path = Path(file)
    if not path.parent.is_dir():
        raise ConfigError(f"{key}: got {file!r}, but there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{key}: got {file!r}, which is a folder, expected a file")
    return path


def write_json(path: Path, document: Document) -> None:
    """Write the document."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_csv(path: Path, document: Document) -> None:
    """Write one row per model with the columns of timm's `benchmark.py`.

    Times are ms per batch, `infer_gmacs` G MACs per image and `param_count` millions, as there.
    """
    settings = document["settings"]
    rows: dict[str, Row] = {}
    for result in document["results"]:
        row = rows.setdefault(result["subject"], {"model": result["subject"]})
        prefix = "infer" if result["mode"] == "eval" else "train"
        row |= {
            f"{prefix}_samples_per_sec": round(result["images_per_second"], 2),
            f"{prefix}_step_time": round(1e3 * spread(result["seconds"]).median, 3),
            f"{prefix}_batch_size": settings["batch"],
            f"{prefix}_img_size": settings["size"],
        }
        if prefix == "infer" and result["macs"] is not None:
            row["infer_gmacs"] = round(result["macs"] / 1e9, 2)
        row["param_count"] = round(result["parameters"] / 1e6, 2)
    columns = dict.fromkeys(key for row in rows.values() for key in row if key != "param_count")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "param_count"])
        writer.writeheader()
        writer.writerows(rows.values())


def tracked_metrics(document: Document) -> dict[str, float]:
    """Return the document's medians by a tracker's metric names: `eval/spanet_s/seconds`."""
    values = {}
    for row in document["results"]:
        name = f"{row['mode']}/{row['subject']}"
        values[f"{name}/seconds"] = spread(row["seconds"]).median
        if row.get("memory"):
            values[f"{name}/peak_bytes"] = float(row["memory"]["peak"])
    for row in document["ratios"]:
        name = f"{row['mode']}/{row['subject']}/over/{row['against']}"
        values[f"{name}/speedup"] = row["speedup"]["median"]
    return values


def show(document: Document) -> None:
    """Print a document's tables."""
    out = console()
    machine, settings = document["machine"], document["settings"]
    _line(
        out,
        f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores, "
        f"torch {document['versions']['torch']}",
    )
    if "dtype" in settings:
        height = settings["height"] or settings["size"]
        frozen = ", frozen" if settings["freeze"] else ""
        _line(
            out,
            f"{settings['dtype']}, {settings['layout']}, compile {settings['compile']}{frozen}, "
            f"batch {settings['batch']}, {settings['size']}×{height} px",
        )
    if document["ceiling"]:
        ceiling = document["ceiling"]
        _line(
            out,
            f"ceiling: {ceiling['macs_per_second'] / 1e9:.1f} G MACs/s in products, "
            f"{ceiling['bytes_per_second'] / 1e9:.1f} GB/s in copies",
        )
    _SHOW[document["benchmark"]](out, document)
    load = machine["load_average"]
    if load is not None and load > 0.5:
        _line(out, f"note: the load average was {load:.1f} at the start: the machine was not idle")


def _show_throughput(out: Console, document: Document) -> None:
    for mode, title in (("eval", "Evaluation"), ("train", "Training step")):
        rows = [row for row in document["results"] if row["mode"] == mode]
        if not rows:
            continue
        table = _table(
            title,
            *("", "images/s", "ms/image", "spread\n%", "peak\nMB", "params\nM", "G MACs\n/image"),
            *(["ceiling\n%"] if document["ceiling"] else []),
        )
        for row in rows:
            table.add_row(
                row["subject"],
                f"{row['images_per_second']:.1f}",
                f"{row['ms_per_image']:.2f}",
                _spread_percent(row["seconds"]),
                _format(row["memory"] and row["memory"]["peak"], 1e6, 0),
                _format(row["parameters"], 1e6, 1),
                _format(row["macs"], 1e9, 2),
                *([_format(row["ceiling_share"], 0.01, 0)] if document["ceiling"] else []),
            )
        out.print(table)
    _show_ratios(out, document)


def _show_ops(out: Console, document: Document) -> None:
    table = _table(
        "Token mixers", "mixer", "B×C×H×W", "direction", "ms", "floor: products", "copy, ms", left=3
    )
    for row in document["results"]:
        floor = row["floor_ms"] if row["mode"] == "forward" else None
        table.add_row(
            row["subject"],
            "×".join(map(str, row["shape"])),
            row["mode"],
            f"{row['ms']:.3f}",
            _format(floor and floor["products"], 1, 3),
            _format(floor and floor["copy"], 1, 3),
        )
    out.print(table)
    _show_ratios(out, document)


def _show_ratios(out: Console, document: Document) -> None:
    notes = ["spread: interquartile range of the rounds over their median."]
    if document["ratios"]:
        columns = ("", "mode", "against", "speed-up", "quartiles", "memory\n×", "difference")
        table = _table("Comparisons", *columns, left=3)
        for row in document["ratios"]:
            speedup = row["speedup"]
            difference = row.get("difference")
            table.add_row(
                row["subject"],
                row["mode"],
                row["against"],
                f"{speedup['median']:.2f}×",
                f"{speedup['q1']:.2f}–{speedup['q3']:.2f}",
                _format(row.get("memory"), 1, 2),
                _NONE if difference is None else f"{difference:.0e}",
            )
        out.print(table)
        notes.append(
            "speed-up: time of `against` over the model's, median of "
            f"{document['settings']['rounds']} alternating rounds."
        )
        if any(row.get("difference") is not None for row in document["ratios"]):
            notes.append("difference: of the logits with equal weights, relative.")
    _line(out, "\n".join(notes))


def _show_sweep(out: Console, document: Document) -> None:
    table = _table("A trial, seconds", "part", "median", "lowest", "highest")
    for row in document["results"]:
        values = spread(row["seconds"])
        table.add_row(
            row["subject"], *(f"{x:.2f}" for x in (values.median, values.low, values.high))
        )
    out.print(table)


_SHOW = {
    "models": _show_throughput,
    "heads": _show_throughput,
    "ops": _show_ops,
    "sweep": _show_sweep,
}


def _line(out: Console, text: str) -> None:
    out.print(text, highlight=False)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return table


def _format(value: float | None, unit: float, digits: int) -> str:
    return _NONE if value is None else f"{value / unit:.{digits}f}"


def _spread_percent(seconds: Sequence[float]) -> str:
    values = spread(seconds)
    return f"{100 * (values.q3 - values.q1) / values.median:.1f}"
