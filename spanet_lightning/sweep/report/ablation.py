"""What the report of an ablation says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from spanet_lightning.sweep.definition import Ablation, Overrides
from spanet_lightning.sweep.report import arm_figures, words
from spanet_lightning.sweep.report.arms import COSTLY, Quantity, Row, metric_names
from spanet_lightning.sweep.report.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Section,
    Table,
    Tone,
)
from spanet_lightning.sweep.report.gather import Gathered
from spanet_lightning.sweep.statistics import ALPHA, LEAST_BOOTSTRAP, least_p, seeds_needed

_FLAG = " ⚑"
_BADGES: dict[str, str] = {
    "better": "▲ better",
    "worse": "▼ worse",
    "inconclusive": "○ inconclusive",
}


def verdict(found: Gathered, rows: Sequence[Row]) -> tuple[str, Tone]:
    """Return the answer to the question, as far as there is one.

    Args:
        found: The study.
        rows: Its arms.
    """
    method, objective = _method(found), found.study.objectives[0]
    others = [row for row in rows if not row.is_control]
    compared = [row for row in others if row.comparison is not None]
    control = f"the control ({method.control})"
    if not compared:
        return f"No answer yet: no arm can be compared with {control}.", "inconclusive"
    better = [r for r in compared if r.comparison and r.comparison.verdict == "better"]
    worse = [r for r in compared if r.comparison and r.comparison.verdict == "worse"]
    parts = []
    for claimed, word in ((better, "better"), (worse, "worse")):
        if claimed:
            names = words.listed([_difference(row, rows, objective.metric) for row in claimed])
            verb = "is" if len(claimed) == 1 else "are"
            parts.append(f"{names} {verb} {word} than {control} in {objective.metric}.")
    rest = [r for r in compared if r not in better and r not in worse]
    if not parts:
        n = max(len(r.comparison.seeds) for r in rest if r.comparison)
        if not any(r.comparison.can_claim for r in rest if r.comparison):
            family = len(others)
            least = words.p_value(min(1.0, least_p(n) * family))
            parts.append(
                f"Inconclusive: {words.counted(n, 'seed')} can't tell "
                f"{words.counted(family, 'arm')} from {control}, however large the difference. "
                f"The least p that the test could give is {least}; a claim needs "
                f"{seeds_needed(family)} seeds or more."
            )
        else:
            parts.append(
                f"Inconclusive: with {words.counted(n, 'seed')}, no arm differs from {control} in "
                f"{objective.metric} by more than chance may do."
            )
        largest = max(rest, key=lambda r: abs(r.comparison.mean) if r.comparison else 0.0)
        seen = _difference(largest, rows, objective.metric)
        parts.append(f"The largest difference seen is that of {seen}.")
    elif rest:
        stay = "stays" if len(rest) == 1 else "stay"
        parts.append(f"{words.counted(len(rest), 'arm')} {stay} inconclusive.")
    left_out = len(others) - len(compared)
    if left_out:
        parts.append(f"{words.counted(left_out, 'arm')} could not be compared.")
    tone: Tone = "better" if better else "worse" if worse else "inconclusive"
    return " ".join(parts), tone


def sections(found: Gathered, rows: Sequence[Row]) -> tuple[Section, ...]:
    """Return the parts that only an ablation has.

    Args:
        found: The study.
        rows: Its arms.
    """
    objective = found.study.objectives[0]
    results: list[Block] = [_quality(found, rows)]
    if any(row.trials for row in rows):
        results.append(arm_figures.seeds(rows, objective))
    made = [Section("Results", tuple(results)), Section("Cost", (_cost(rows),))]
    if any(len(t.curve) > 0 for row in rows for t in row.trials):
        made.append(Section("Learning curves", (arm_figures.curves(rows, objective),)))
    made.append(Section("The arms", (_arms(found),)))
    made.append(Section("How to read this", (_reading(found, rows),)))
    return tuple(made)


def warnings(rows: Sequence[Row]) -> list[str]:
    """Return what one should know before believing the comparison.

    Args:
        rows: The arms.
    """
    said = [f"Not compared: {row.refused}." for row in rows if row.refused]
    costly = [row for row in rows if row.costly]
    if costly:
        names = words.listed(
            [f"{row.arm.name} ({_relative(row)} of the control's)" for row in costly]
        )
        said.append(
            f"MACs differ from the control's by more than {100 * COSTLY:.0f} % in {names}: a "
            "difference may be owed to size rather than to design."
        )
    return said


def changes(overrides: Overrides) -> str:
    """Write overrides as code: "`model.backbone.srf`: `false`"."""
    return "; ".join(f"`{key}`: `{json.dumps(value)}`" for key, value in overrides.items())


def _quality(found: Gathered, rows: Sequence[Row]) -> Table:
    study = found.study
    first = study.objectives[0].metric
    names = metric_names(found)
    test = study.test
    published = any(row.arm.published is not None for row in rows)
    control_published = next((r.arm.published for r in rows if r.is_control), None)
    places = {name: _places(rows, name) for name in names}
    columns = [
        Column("arm", numeric=False),
        Column("seeds"),
        Column(f"{first}, mean ± sd"),
        Column("difference [95 % CI]"),
        Column("p"),
        Column("p, Holm"),
        Column("verdict", numeric=False),
    ]
    columns += [Column(f"{name}, mean ± sd") for name in names[1:]]
    if test:
        columns.append(Column(f"{test}, difference"))
    if published:
        columns.append(Column("published"))
    body = []
    for row in rows:
        quantity, compared = row.quantities[first], row.comparison
        cells = [
            Cell(row.arm.name + (_FLAG if row.costly else "")),
            Cell(str(len(row.trials))),
            Cell(_mean(quantity, first, places[first])),
        ]
        if row.is_control:
            cells += [Cell(words.NONE)] * 3 + [Cell("control", "muted")]
        elif compared is None:
            cells += [Cell(words.NONE)] * 3 + [Cell("not compared", "flag")]
        else:
            cells += [
                Cell(_with_interval(quantity, places[first])),
                Cell(words.p_value(compared.p)),
                Cell(words.p_value(compared.holm_p)),
                Cell(_BADGES[compared.verdict], compared.verdict),
            ]
        cells += [Cell(_mean(row.quantities[name], name, places[name])) for name in names[1:]]
        if test:
            text = (
                words.NONE if row.is_control else _with_interval(row.quantities[test], places[test])
            )
            cells.append(Cell(text))
        if published:
            cells.append(Cell(_published(row, control_published)))
        body.append(tuple(cells))
    return Table(
        caption=f"Each arm beside the control, by {first}",
        columns=tuple(columns),
        rows=tuple(body),
        notes=tuple(_notes(found, rows, published=published)),
        strong=tuple(i for i, row in enumerate(rows) if row.is_control),
    )


def _notes(found: Gathered, rows: Sequence[Row], *, published: bool) -> list[str]:
    intervals = [q.interval for row in rows for q in row.quantities.values() if q.interval]
    notes = []
    if any(one.method == "student" for one in intervals):
        notes.append(
            f"†: of fewer than {LEAST_BOOTSTRAP} seeds (or of mostly equal differences) there is "
            "no sound bootstrap; this is Student's interval, which supposes normal differences."
        )
    if any(row.costly for row in rows):
        notes.append(f"⚑: MACs differ from the control's by more than {100 * COSTLY:.0f} %.")
    if published:
        notes.append(
            "published: the paper's figure, in its unit and on its data set; in brackets its "
            "difference to the published control. The directions may be compared, not the values."
        )
    if found.study.test:
        notes.append(
            f"{found.study.test} is of the checkpoint that was best on validation, evaluated once "
            "when its training had ended. No verdict is made by it."
        )
    return notes


def _cost(rows: Sequence[Row]) -> Table:
    body = [
        (
            Cell(row.arm.name),
            Cell(words.NONE if row.parameters is None else f"{row.parameters:,}"),
            Cell(words.scaled(row.macs)),
            Cell(_relative(row) + (_FLAG if row.costly else ""), "flag" if row.costly else ""),
            Cell(words.rate(row.images_per_second)),
            Cell(words.duration(row.train_seconds)),
        )
        for row in rows
    ]
    return Table(
        caption="What each arm costs",
        columns=(
            Column("arm", numeric=False),
            Column("parameters"),
            Column("MACs, an image"),
            Column("MACs, of the control's"),
            Column("training, images/s"),
            Column("training time"),
        ),
        rows=tuple(body),
        notes=(
            "A MAC is one multiplication with its addition. Throughput and time are means over the "
            "seeds, measured in training, beside whatever else ran on the machine: they are no "
            "benchmark (`spanet bench models` is).",
        ),
        strong=tuple(i for i, row in enumerate(rows) if row.is_control),
    )


def _arms(found: Gathered) -> Table:
    method = _method(found)
    return Table(
        caption="What each arm changes of the experiment",
        columns=(Column("arm", numeric=False), Column("changes", numeric=False)),
        rows=tuple(
            (
                Cell(arm.name),
                Cell(changes(arm.overrides) or "nothing"),
            )
            for arm in method.arms
        ),
        strong=tuple(i for i, arm in enumerate(method.arms) if arm.name == method.control),
    )


def _reading(found: Gathered, rows: Sequence[Row]) -> Bullets:
    objective = found.study.objectives[0]
    family = len(rows) - 1
    at = "the best epoch" if objective.at == "best" else "the last epoch"
    return Bullets(
        (
            f"**Values** are {objective.metric} at {at} of each run, on the validation split"
            + (
                f"; {found.study.test} is reported once, of the weights that validation selected."
                if found.study.test
                else "."
            )
            + " Only complete trials count: what was pruned, failed or stopped is in no mean.",
            "**Difference**: arm minus control with the same seed, then the mean over the seeds; "
            "what a seed does to both drops out.",
            "**95 % CI** of this mean: a studentised bootstrap over the seeds. It speaks about "
            "other seeds of this experiment, not about other data or other sizes.",
            "**p**: exact sign-flip test, two-sided. Of n seeds it can't be less than 2 / 2ⁿ.",
            f"**p, Holm**: corrected for {words.counted(family, 'comparison')}; better or worse is "
            f"only said at {ALPHA} or less, so that the chance of any false claim in this table is "
            f"at most {100 * ALPHA:.0f} %.",
            "**Inconclusive** is not “no difference”: the interval shows how large a difference "
            "these seeds leave open.",
        )
    )


def _difference(row: Row, rows: Sequence[Row], metric: str) -> str:
    places = _places(rows, metric)
    found = row.quantities[metric]
    text = f"{row.arm.name} ({words.signed(found.difference, places)}"
    if found.interval is not None:
        low, high = found.interval.low, found.interval.high
        text += f", 95 % CI {words.signed(low, places)} to {words.signed(high, places)}"
    return f"{text})"


def _places(rows: Sequence[Row], metric: str) -> int:
    quantities = [row.quantities[metric] for row in rows]
    return words.decimals([q.sd for q in quantities], [q.mean for q in quantities])


def _mean(quantity: Quantity, metric: str, places: int) -> str:
    if not quantity.values:
        return words.NONE
    if metric in ("cost/parameters", "cost/macs"):
        return words.scaled(quantity.mean)
    return words.spread(quantity.mean, quantity.sd, places)


def _with_interval(quantity: Quantity, places: int) -> str:
    if quantity.difference is None:
        return words.NONE
    text = words.signed(quantity.difference, places)
    if quantity.interval is None:
        return text
    low, high = quantity.interval.low, quantity.interval.high
    mark = "†" if quantity.interval.method == "student" else ""
    return f"{text} [{words.signed(low, places)}, {words.signed(high, places)}]{mark}"


def _published(row: Row, control: float | None) -> str:
    value = row.arm.published
    if value is None:
        return words.NONE
    places = 1 if math.isclose(value, round(value, 1)) else 2
    text = words.number(value, places)
    if row.is_control or control is None:
        return text
    return f"{text} ({words.signed(value - control, places)})"


def _relative(row: Row) -> str:
    if row.relative_macs is None:
        return words.NONE
    return (
        f"{100 * row.relative_macs:.0f} %"
        if row.relative_macs < 9.995
        else (f"{row.relative_macs:.1f} ×")
    )


def _method(found: Gathered) -> Ablation:
    method = found.study.method
    if not isinstance(method, Ablation):
        raise TypeError("the study is no ablation")
    return method
