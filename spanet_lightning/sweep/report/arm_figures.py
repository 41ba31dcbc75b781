"""Figures of an ablation: every seed as a dot, and the learning curves of each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spanet_lightning.sweep.definition import Objective
from spanet_lightning.sweep.report import words
from spanet_lightning.sweep.report.arms import Row
from spanet_lightning.sweep.report.gather import Trial
from spanet_lightning.sweep.report.scene import (
    LARGE,
    NORMAL,
    SMALL,
    Axis,
    Box,
    Canvas,
    Dot,
    Ink,
    Line,
    Scene,
    Text,
    axis,
    horizontal,
    text_width,
    tick_writer,
    vertical,
    wrapped,
)

_WIDTH = 1040.0
_MARKS = {"better": "▲ better", "worse": "▼ worse", "inconclusive": "○ inconclusive"}


def seeds(rows: Sequence[Row], objective: Objective) -> Scene:
    """Draw every seed of every arm, and beside it its difference to the control.

    Args:
        rows: The arms.
        objective: What they are compared by.
    """
    widest = max(text_width(row.arm.name) for row in rows)
    label = min(270.0, max(120.0, widest + 28))
    count = max(len(row.trials) for row in rows)
    row_height = max(46.0, 16.0 + 7.0 * count)
    top, gap, verdict = 44.0, 44.0, 112.0
    bottom = top + row_height * len(rows)
    half = (_WIDTH - label - gap - verdict - 16) / 2
    left = _values_axis(rows, objective, label, label + half)
    right = _differences_axis(rows, label + half + gap, _WIDTH - verdict - 16)
    canvas = Canvas()
    canvas.add(
        Text(left.start, 20, f"{objective.metric}, each seed", "text", LARGE, bold=True),
        Text(right.start, 20, "Difference to the control, each seed", "text", LARGE, bold=True),
    )
    for i in range(0, len(rows), 2):
        canvas.add(Box(0, top + i * row_height, _WIDTH, row_height, "band", 0.7))
    better = "more is better →" if objective.goal == "max" else "← less is better"
    for one, note in ((left, f"{objective.metric}   ({better})"), (right, "arm − control")):
        write = tick_writer(one, 6)
        canvas.add(*horizontal(one, top, bottom, note, write, 6))
    control = next((row for row in rows if row.is_control), None)
    if control is not None and control.trials:
        x = left(control.quantities[objective.metric].mean)
        title = "mean of the control"
        canvas.add(Line(((x, top), (x, bottom)), "control", 1.5, 1, (5, 4), title))
    zero = right(0)
    canvas.add(Line(((zero, top), (zero, bottom)), "control", 1.5, 1, (5, 4), "no difference"))
    for i, row in enumerate(rows):
        _row(canvas, row, objective, left, right, top + i * row_height, row_height)
    return Scene(
        name="seeds",
        width=_WIDTH,
        height=bottom + 48,
        title=f"{objective.metric} of every seed, and its difference to the control",
        alt=_alt(rows, objective),
        caption=(
            "Left: a dot for each seed, one below the other in the order of the seeds; the tick is "
            "their mean, the bar mean ± standard deviation, the dashed line the control's mean. "
            "Right: each seed's difference to the control with the same seed; the diamond is their "
            "mean, the line its 95 % confidence interval (dashed where it is Student's, which "
            "supposes normal differences)."
        ),
        marks=tuple(canvas.marks),
    )


def _row(
    canvas: Canvas,
    row: Row,
    objective: Objective,
    left: Axis,
    right: Axis,
    top: float,
    height: float,
) -> None:
    """Draw one arm into both panels."""
    middle = top + height / 2
    ink = _ink(row)
    name = wrapped(row.arm.name, left.start - 16)
    for j, line in enumerate(name):
        y = middle + 4 + (j - (len(name) - 1) / 2) * 15
        canvas.add(Text(6, y, line, "text", NORMAL, bold=row.is_control))
    if row.is_control:
        canvas.add(Text(right.end + 14, middle + 4, "control", "muted", NORMAL))
    elif row.comparison is None:
        canvas.add(Text(right.end + 14, middle + 4, "not compared", "muted", NORMAL))
    else:
        verdict = row.comparison.verdict
        verdict_ink: Ink = "muted" if verdict == "inconclusive" else verdict
        bold = verdict != "inconclusive"
        canvas.add(
            Text(right.end + 14, middle + 4, _MARKS[verdict], verdict_ink, NORMAL, bold=bold)
        )
    quantity = row.quantities[objective.metric]
    if not quantity.values:
        canvas.add(Text(left.start + 8, middle + 4, "no complete trial", "muted", SMALL))
        return
    if math.isfinite(quantity.sd):
        x, width = left(quantity.mean - quantity.sd), 2 * quantity.sd
        width *= (left.end - left.start) / (left.high - left.low)
        canvas.add(Box(x, middle - 7, width, 14, ink, 0.18, "mean ± standard deviation"))
    x = left(quantity.mean)
    canvas.add(Line(((x, middle - 11), (x, middle + 11)), ink, 3, 1, (), "mean"))
    places = words.decimals([quantity.sd], [quantity.mean]) + 1
    for y, (seed, value) in _stacked(middle, height, list(quantity.values.items())):
        title = f"{row.arm.name}, seed {seed}: {words.number(value, places)}"
        canvas.add(Dot(left(value), y, 3.6, ink, opacity=0.9, title=title))
    found = row.comparison
    if found is None:
        return
    if found.interval is not None:
        low, high = right(found.interval.low), right(found.interval.high)
        dash = (4.0, 3.0) if found.interval.method == "student" else ()
        # What reaches beyond the panel ends at its edge, without a cap.
        shown = max(low, right.start), min(high, right.end)
        title = (
            f"95 % CI {words.signed(found.interval.low, places)} to "
            f"{words.signed(found.interval.high, places)}"
        )
        canvas.add(Line(((shown[0], middle), (shown[1], middle)), ink, 2, 1, dash, title))
        for end, inside in ((low, low >= right.start), (high, high <= right.end)):
            if inside:
                canvas.add(Line(((end, middle - 6), (end, middle + 6)), ink, 2))
    pairs = list(zip(found.seeds, found.differences, strict=True))
    for y, (seed, value) in _stacked(middle, height, pairs):
        title = f"{row.arm.name}, seed {seed}: {words.signed(value, places)}"
        canvas.add(Dot(right(value), y, 3.2, ink, hollow=True, title=title))
    title = f"{row.arm.name}: mean difference {words.signed(found.mean, places)}"
    canvas.add(Dot(right(found.mean), middle, 7, ink, "diamond", title=title))


def curves(rows: Sequence[Row], objective: Objective) -> Scene:
    """Draw the learning curves, a panel for each arm with the control's mean in each.

    Args:
        rows: The arms.
        objective: What the curves show.
    """
    shown = [row for row in rows if any(t.curve for t in row.trials)]
    columns = min(3 if len(shown) > 4 else 2, max(1, len(shown)))
    lines = -(-len(shown) // columns)
    first, between, heading, height, below = 66.0, 18.0, 34.0, 170.0, 30.0
    width = (_WIDTH - first - 10 - between * (columns - 1)) / columns
    values = [v for row in shown for t in row.trials for _, v in t.curve]
    epochs = [e for row in shown for t in row.trials for e, _ in t.curve]
    control = next((r for r in shown if r.is_control), None)
    base = _mean_curve(control.trials) if control is not None else []
    canvas = Canvas()
    for i, row in enumerate(shown):
        x0 = first + (i % columns) * (width + between)
        y0 = heading + (i // columns) * (height + heading + below)
        across = axis(epochs, x0, x0 + width, pad=0.02)
        up = axis(values, y0 + height, y0, pad=0.05)
        ink = _ink(row)
        write = tick_writer(up, 5) if i % columns == 0 else lambda _: ""
        label = objective.metric if i % columns == 0 else ""
        canvas.add(*vertical(up, x0, x0 + width, label, write, 5))
        whole = [t for t in across.ticks(6) if t == round(t)]
        canvas.add(
            *(
                Text(across(t), y0 + height + 16, words.plain(t), "muted", SMALL, "middle")
                for t in whole
            )
        )
        if i + columns >= len(shown):
            middle = x0 + width / 2
            canvas.add(Text(middle, y0 + height + 34, "epoch", "text", NORMAL, "middle"))
        name = row.arm.name + (" (control)" if row.is_control else "")
        fitting = wrapped(name, width, NORMAL, 1)[0]
        canvas.add(Text(x0, y0 - 9, fitting, "text", NORMAL, bold=True))
        if base and not row.is_control:
            points = tuple((across(e), up(v)) for e, v in base)
            canvas.add(Line(points, "control", 1.5, 1, (5, 4), "mean of the control"))
        for trial in row.trials:
            if len(trial.curve) > 1:
                points = tuple((across(e), up(v)) for e, v in trial.curve)
                title = f"{row.arm.name}, seed {trial.record.seed}"
                canvas.add(Line(points, ink, 1.2, 0.4, (), title))
        mean = _mean_curve(row.trials)
        title = f"{row.arm.name}: mean of {words.counted(len(row.trials), 'seed')}"
        canvas.add(Line(tuple((across(e), up(v)) for e, v in mean), ink, 2.6, 1, (), title))
        if len(mean) == 1:
            canvas.add(Dot(across(mean[0][0]), up(mean[0][1]), 3.6, ink, title=title))
    names = words.listed([row.arm.name for row in shown]) if shown else "none"
    return Scene(
        name="curves",
        width=_WIDTH,
        height=lines * (height + heading + below) + 22,
        title=f"{objective.metric} by epoch",
        alt=f"Learning curves of {objective.metric}, a panel for each of: {names}.",
        caption=(
            "Thin: a line for each seed. Thick: their mean, up to the last epoch that all of them "
            "have. Dashed: the control's mean. All panels have the same axes."
        ),
        marks=tuple(canvas.marks),
    )


def _mean_curve(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Return epoch and mean of the seeds, where all of them have a value."""
    curves = [dict(t.curve) for t in trials if t.curve]
    if not curves:
        return []
    shared = sorted(set.intersection(*(set(c) for c in curves)))
    return [(e, math.fsum(c[e] for c in curves) / len(curves)) for e in shared]


def _stacked(
    middle: float, height: float, found: Sequence[tuple[int, float]]
) -> list[tuple[float, tuple[int, float]]]:
    """Put the seeds of a row one below the other, so that none hides another."""
    room = height - 22
    step = min(9.0, room / max(1, len(found) - 1))
    return [(middle + (i - (len(found) - 1) / 2) * step, one) for i, one in enumerate(found)]


def _values_axis(rows: Sequence[Row], objective: Objective, start: float, end: float) -> Axis:
    quantities = [row.quantities[objective.metric] for row in rows]
    values = [v for q in quantities for v in q.values.values()]
    values += [q.mean + sign * q.sd for q in quantities for sign in (-1, 1) if q.values]
    return axis(values, start, end)


def _differences_axis(rows: Sequence[Row], start: float, end: float) -> Axis:
    compared = [row.comparison for row in rows if row.comparison is not None]
    values = [d for found in compared for d in found.differences]
    ends = [e for c in compared if c.interval for e in (c.interval.low, c.interval.high)]
    # Intervals of two or three seeds can be ten times as wide as the differences, and would
    # squeeze those into a line: the panel then ends before they do.
    reach = 2.5 * max((abs(v) for v in values), default=0.0)
    values += [max(-reach, min(reach, e)) for e in ends]
    return axis(values, start, end, around=0.0)


def _ink(row: Row) -> Ink:
    if row.is_control:
        return "control"
    found = row.comparison
    if found is None or found.verdict == "inconclusive":
        return "main"
    return found.verdict


def _alt(rows: Sequence[Row], objective: Objective) -> str:
    quantities = [row.quantities[objective.metric] for row in rows]
    places = words.decimals([q.sd for q in quantities], [q.mean for q in quantities])
    parts = []
    for row, quantity in zip(rows, quantities, strict=True):
        if not quantity.values:
            parts.append(f"{row.arm.name}: no complete trial")
            continue
        text = f"{row.arm.name}: {words.spread(quantity.mean, quantity.sd, places)}"
        if row.is_control:
            text += " (control)"
        elif row.comparison is not None:
            difference = words.signed(row.comparison.mean, places)
            text += f", difference {difference}, {row.comparison.verdict}"
        parts.append(text)
    return f"{objective.metric}. {'; '.join(parts)}."
