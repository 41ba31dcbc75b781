"""What a benchmark shows on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from spanet_lightning.bench.models import Row
from spanet_lightning.bench.report import Document
from spanet_lightning.bench.timing import spread
from spanet_lightning.summary import console

_NONE = "–"


def show(found: Document) -> None:
    """Print the tables of a document."""
    out = console(least=118)
    where, settings = found["machine"], found["settings"]
    out.print(
        f"{where['device']}, {where['threads']} threads of {where['cores']} cores, "
        f"torch {found['versions']['torch']}",
        highlight=False,
    )
    if "dtype" in settings:
        size = {
            "resolution": " of 224 px",
            "heads": f", {settings['size']}×{settings.get('height')} px",
        }.get(found["benchmark"], f", {settings['size']} px")
        out.print(
            f"{settings['dtype']}, {settings['layout']}, compile {settings['compile']}"
            f"{', frozen' if settings['freeze'] else ''}, batch {settings['batch']}{size}",
            highlight=False,
        )
    if found["ceiling"]:
        out.print(
            f"ceiling: {found['ceiling']['macs_per_second'] / 1e9:.1f} G MACs/s in products, "
            f"{found['ceiling']['bytes_per_second'] / 1e9:.1f} GB/s in copies",
            highlight=False,
        )
    _SHOW[found["benchmark"]](out, found)
    _show_load(out, where)


def _models(out: Console, found: Document) -> None:
    for mode in dict.fromkeys(row["mode"] for row in found["results"]):
        table = _table(
            {"eval": "Evaluation", "train": "Training step"}[mode],
            "model",
            *("images/s", "ms/image", "spread\n%", "peak\nMB", "G MACs\n/image", "of ceiling\n%"),
            *(["graphs", "breaks"] if found["settings"]["compile"] != "none" else []),
        )
        for row in _of(found["results"], mode):
            compiled = row["compiled"] or {}
            table.add_row(
                row["subject"],
                f"{row['images_per_second']:.1f}",
                f"{row['ms_per_image']:.2f}",
                _width(row["seconds"]),
                _NONE if row["memory"] is None else f"{row['memory']['peak'] / 1e6:.0f}",
                _NONE if row["macs"] is None else f"{row['macs'] / 1e9:.2f}",
                _NONE if row["ceiling_share"] is None else f"{100 * row['ceiling_share']:.0f}",
                *(str(value) for value in compiled.values()),
            )
        out.print(table)
    if found["ratios"]:
        table = _table(
            "Comparisons",
            *("model", "against", "mode"),
            *("speed-up", "quartiles", "range", "time\n×", "memory\n×", "difference"),
            left=3,
        )
        for row in found["ratios"]:
            table.add_row(
                *(row["subject"], row["against"], row["mode"]),
                *_speedup(row),
                f"{1 / row['speedup']['median']:.2f}",
                _NONE if row["memory"] is None else f"{row['memory']:.2f}",
                _NONE if row["difference"] is None else f"{row['difference']:.0e}",
            )
        out.print(table)
    notes = ["spread: distance of the quartiles of the rounds, over their median."]
    if found["ratios"]:
        notes.append(_note(found))
        notes.append("difference: of the logits of the same weights, over their largest magnitude.")
    _print_notes(out, notes)


def _ops(out: Console, found: Document) -> None:
    ratios = {(r["against"], r["mode"]): r for r in found["ratios"]}
    rows = {(r["subject"], r["impl"], r["mode"]): r for r in found["results"]}
    table = _table(
        "Token mixers",
        *("mixer", "C×H×W", "impl", "forward\nms", "quartiles of\nspeed-up to it"),
        *("forward and\nbackward, ms", "quartiles of\nspeed-up to it", "floor, forward\nms"),
        left=3,
    )
    for subject, impl in dict.fromkeys(key[:2] for key in rows):
        forward, both = (rows[subject, impl, mode] for mode in ("forward", "forward+backward"))
        floor = forward["floor_ms"]
        against = [ratios.get((f"{subject}:{impl}", r["mode"])) for r in (forward, both)]
        beside = [_NONE if r is None else _speedup(r)[1] for r in against]
        table.add_row(
            subject,
            "×".join(map(str, forward["shape"][1:])),
            impl,
            f"{forward['ms']:.3f}",
            beside[0],
            f"{both['ms']:.3f}",
            beside[1],
            f"{floor['products']:.3f} + {floor['copy']:.3f}",
        )
    out.print(table)
    first = next((r["subject"].rpartition(":")[2] for r in found["ratios"]), None)
    notes = ["floor: products at the rate of large ones + reading the input, writing the output."]
    if first is not None:
        notes.append(f"speed-up to it: its time over that of {first!r}, in each round.")
    _print_notes(out, notes)


def _data(out: Console, found: Document) -> None:
    ratios = {(r["against"], r["mode"]): r for r in found["ratios"]}
    table = _table(
        "Loaders", "mode", "loader", "images/s", "ours is faster by", "quartiles", left=2
    )
    for row in found["results"]:
        against = ratios.get((row["subject"], row["mode"]))
        beside = [_NONE, _NONE] if against is None else _speedup(against)[:2]
        table.add_row(row["mode"], row["subject"], f"{row['images_per_second']:.1f}", *beside)
    out.print(table)


def _heads(out: Console, found: Document) -> None:
    for mode in dict.fromkeys(row["mode"] for row in found["results"]):
        title = {"eval": "Evaluation", "train": "Training step"}[mode]
        table = _table(
            f"{title}, on {found['settings']['backbone']}",
            *("head", "images/s", "ms/image", "spread\n%", "peak\nMB"),
            *("parameters\nM", "G MACs\n/image", "time\n×", "memory\n×"),
        )
        ratios = {row["subject"]: row for row in _of(found["ratios"], mode)}
        for row in _of(found["results"], mode):
            beside = ratios.get(row["subject"])
            table.add_row(
                row["subject"],
                f"{row['images_per_second']:.2f}",
                f"{row['ms_per_image']:.0f}",
                _width(row["seconds"]),
                f"{row['memory']['peak'] / 1e6:.0f}",
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['macs'] / 1e9:.0f}",
                _NONE if beside is None else f"{1 / beside['speedup']['median']:.1f}",
                _NONE if beside is None else f"{beside['memory']:.1f}",
            )
        out.print(table)
    notes = [
        "spread: distance of the quartiles of the rounds, over their median.",
        "×: over the backbone alone, median of the rounds in alternation.",
    ]
    _print_notes(out, notes)


def _resolution(out: Console, found: Document) -> None:
    subjects = list(dict.fromkeys(row["subject"] for row in found["results"]))
    times = {(r["size"], r["subject"]): r["ms_per_image"] for r in found["results"]}
    table = _table("Time of an image, ms", "px", *subjects)
    for size in dict.fromkeys(row["size"] for row in found["results"]):
        table.add_row(str(size), *(f"{times[size, subject]:.2f}" for subject in subjects))
    out.print(table)
    largest = max(row["size"] for row in found["results"])
    fits = _table(
        f"Predicted growth, and the share of each part at {largest} px",
        *("model", "parts", "largest error", f"{largest} px, predicted from smaller"),
        left=2,
    )
    for row in found["fits"]:
        fits.add_row(
            row["subject"],
            ", ".join(f"{k} {100 * v:.0f} %" for k, v in row["shares"].items()),
            f"{100 * row['largest_error']:.1f} %",
            _NONE if row["held_out_error"] is None else f"{100 * row['held_out_error']:+.1f} %",
        )
    out.print(fits)


def _sweep(out: Console, found: Document) -> None:
    table = _table("A trial, seconds", "part", "median", "lowest", "highest")
    rows = {row["subject"]: row for row in found["results"]}
    for name, row in rows.items():
        around = spread(row["seconds"])
        table.add_row(name, *(f"{x:.2f}" for x in (around.median, around.low, around.high)))
    out.print(table)
    notes = [
        "to the first step: from the start of the process; imports: of all modules, as Python "
        "counts them; the rest: the others.",
        "book-keeping: a trial that does nothing, its process included: "
        f"{rows['book-keeping']['trials_per_minute']:.0f} a minute.",
    ]
    _print_notes(out, notes)


def _tracking(out: Console, found: Document) -> None:
    table = _table(
        "A training step that logs 5 metrics",
        *("tracker", "ms a step", "the call, ms", "of the step", "time\n×", "quartiles"),
    )
    calls = {row["subject"]: row for row in _of(found["results"], "call")}
    ratios = {row["subject"]: row["speedup"] for row in found["ratios"]}
    for row in _of(found["results"], "step"):
        name, step = row["subject"], spread(row["seconds"]).median
        beside = [_NONE] * 4
        if name in calls:
            call, s = spread(calls[name]["seconds"]).median, ratios[name]
            beside = [
                f"{1e3 * call:.3f}",
                f"{100 * call / step:.2f} %",
                f"{1 / s['median']:.3f}",
                f"{1 / s['q3']:.3f}–{1 / s['q1']:.3f}",
            ]
        table.add_row(name, f"{1e3 * step:.2f}", *beside)
    out.print(table)
    notes = [
        "×: time of a step over that of one without a tracker, median of "
        f"{found['settings']['rounds']} rounds in alternation."
    ]
    _print_notes(out, notes)


_SHOW = {
    "models": _models,
    "ops": _ops,
    "heads": _heads,
    "data": _data,
    "resolution": _resolution,
    "sweep": _sweep,
    "tracking": _tracking,
}


def _table(title: str, *columns: str, left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        justify: JustifyMethod = "left" if i < left else "right"
        table.add_column(column, justify=justify, no_wrap=i < left, overflow="fold")
    return table


def _of(rows: Iterable[Row], mode: str) -> list[Row]:
    return [row for row in rows if row["mode"] == mode]


def _speedup(row: Row) -> list[str]:
    s = row["speedup"]
    return [
        f"{s['median']:.2f}×",
        f"{s['q1']:.2f}–{s['q3']:.2f}",
        f"{s['low']:.2f}–{s['high']:.2f}",
    ]


def _width(seconds: Sequence[float]) -> str:
    around = spread(seconds)
    return f"{100 * (around.q3 - around.q1) / around.median:.1f}"


def _note(found: Document) -> str:
    return (
        f"speed-up: time of the other over the model's, median of {found['settings']['rounds']} "
        "rounds in alternation; time: its inverse."
    )


def _print_notes(out: Console, notes: Sequence[str]) -> None:
    out.print("\n".join(notes), highlight=False)


def _show_load(out: Console, where: Row) -> None:
    load = where["load_average"]
    if load is not None and load > 0.5:
        out.print(
            f"note: the load average was {load:.1f} at the start: others were at work.",
            highlight=False,
        )
