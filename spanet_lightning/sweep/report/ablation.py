"""What the report of an ablation says."""

from __future__ import annotations

import json
from collections.abc import Sequence

from spanet_lightning.sweep.definition import Ablation, Overrides
from spanet_lightning.sweep.report import arm_figures, words
from spanet_lightning.sweep.report.arms import COSTLY, Quantity, Row
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
from spanet_lightning.sweep.statistics import (
    ALPHA,
    LEAST_BOOTSTRAP,
    Comparison,
    Interval,
    least_p,
    seeds_needed,
)

_SPACE = "\N{NO-BREAK SPACE}"
_FLAG = f"{_SPACE}⚑"
_MEAN_SD = f"mean{_SPACE}±{_SPACE}sd"
_CI = f"95{_SPACE}%{_SPACE}CI"
_BADGES: dict[str, str] = {
    "better": f"▲{_SPACE}better",
    "worse": f"▼{_SPACE}worse",
    "inconclusive": f"○{_SPACE}inconclusive",
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
    control = f"the control (**{method.control}**)"
    if not compared:
        return f"No answer yet: no arm can be compared with {control}.", "inconclusive"
    better = [r for r in compared if r.comparison and r.comparison.verdict == "better"]
    worse = [r for r in compared if r.comparison and r.comparison.verdict == "worse"]
    parts: list[str] = []
    for claimed, word in ((better, "better"), (worse, "worse")):
        if claimed:
            names = words.listed([_difference(row, rows, objective.metric) for row in claimed])
            verb = "is" if len(claimed) == 1 else "are"
            than = f" than {control} in {objective.metric}" if not parts else ""
            parts.append(f"{names} {verb} {word}{than}.")
    rest = [r for r in compared if r not in better and r not in worse]
    if not parts:
        n = max(len(r.comparison.seeds) for r in rest if r.comparison)
        if not any(r.comparison.can_claim for r in rest if r.comparison):
            family = len(others)
            least = words.p_value(min(1.0, least_p(n) * family))
            parts.append(
                f"Inconclusive: {words.counted(n, 'seed')} can't tell "
                f"{words.counted(family, 'arm')} from {control}, however large the difference. "
                f"The least corrected p that they could give is {least}; a claim needs at least "
                f"{seeds_needed(family)} seeds."
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
    beside = _beside(found, rows)
    if beside is not None:
        results.append(beside)
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
    metrics = [objective.metric for objective in found.study.objectives]
    first = metrics[0]
    places, digits = {name: _places(rows, name) for name in metrics}, _digits(rows, first)
    body = []
    for row in rows:
        quantity, compared = row.quantities[first], row.comparison
        cells = [
            Cell(row.arm.name + (_FLAG if row.costly else "")),
            Cell(str(len(row.trials))),
            Cell(_mean(quantity, first, places[first])),
        ]
        if row.is_control:
            cells += [Cell(words.NONE)] * 4 + [Cell("control", "muted")]
        elif compared is None:
            cells += [Cell(words.NONE)] * 4 + [Cell("not compared", "flag")]
        else:
            cells += [
                Cell(words.signed(compared.mean, digits)),
                Cell(_interval(quantity.interval, digits)),
                Cell(words.p_value(compared.p)),
                Cell(words.p_value(compared.holm_p)),
                Cell(_badge(compared), compared.verdict),
            ]
        cells += [Cell(_mean(row.quantities[name], name, places[name])) for name in metrics[1:]]
        body.append(tuple(cells))
    notes = []
    shown = [row.comparison.interval for row in rows if row.comparison is not None]
    if any(one is not None and one.method == "student" for one in shown):
        notes.append(
            f"†: of fewer than {LEAST_BOOTSTRAP} seeds (or of mostly equal differences) there is "
            "no sound bootstrap; this is Student's interval, which supposes normal differences."
        )
    if any(row.costly for row in rows):
        notes.append(f"⚑: MACs differ from the control's by more than {100 * COSTLY:.0f} %.")
    return Table(
        caption=f"Each arm beside the control, by {first}",
        columns=(
            Column("arm", numeric=False),
            Column("seeds"),
            Column(f"{first}, {_MEAN_SD}"),
            Column("difference"),
            Column(_CI),
            Column("p"),
            Column("p, Holm"),
            Column("verdict", numeric=False),
            *(Column(f"{name}, {_MEAN_SD}") for name in metrics[1:]),
        ),
        rows=tuple(body),
        notes=tuple(notes),
        strong=_controls(rows),
    )


def _beside(found: Gathered, rows: Sequence[Row]) -> Table | None:
    """Return the table of the test split and of what is published; None without either."""
    test, first = found.study.test, found.study.objectives[0].metric
    control = next((row.arm.published for row in rows if row.is_control), None)
    columns, notes, subjects = [Column("arm", numeric=False)], [], []
    lines = [[Cell(row.arm.name)] for row in rows]
    if test:
        subjects.append("on the test split")
        places = _places(rows, test)
        columns += [Column(f"{test}, {_MEAN_SD}"), Column("difference")]
        for line, row in zip(lines, rows, strict=True):
            difference = None if row.is_control else row.quantities[test].difference
            line.append(Cell(_mean(row.quantities[test], test, places)))
            line.append(Cell(words.signed(difference, _digits(rows, test))))
        notes.append(
            f"{test} is of the checkpoint that was best on validation, evaluated once when its "
            "training had ended. No verdict is made by it."
        )
    published = [row.arm.published for row in rows if row.arm.published is not None]
    if published:
        subjects.append("beside what is published")
        columns += [
            Column("published"),
            Column("difference, published"),
            Column(f"difference, here ({first})"),
        ]
        digits = _published_digits(published)
        for line, row in zip(lines, rows, strict=True):
            value = row.arm.published
            theirs = None
            if value is not None and control is not None and not row.is_control:
                theirs = value - control
            ours = row.comparison.mean if row.comparison else None
            line.append(Cell(words.number(value, digits)))
            line.append(Cell(words.signed(theirs, digits)))
            line.append(Cell(words.signed(ours, _digits(rows, first))))
        notes.append(
            "Published figures are in the paper's unit and of its data set, of one seed where the "
            "paper does not say otherwise: directions may be compared, sizes not."
        )
    if not subjects:
        return None
    caption = f"The arms {words.listed(subjects)}"
    return Table(
        caption=caption,
        columns=tuple(columns),
        rows=tuple(tuple(line) for line in lines),
        notes=tuple(notes),
        strong=_controls(rows),
    )


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
        strong=_controls(rows),
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
    places = _digits(rows, metric)
    found = row.quantities[metric]
    text = f"**{row.arm.name}** ({words.signed(found.difference, places)}"
    if found.interval is not None:
        low, high = found.interval.low, found.interval.high
        text += f", {_CI} {words.signed(low, places)} to {words.signed(high, places)}"
    return f"{text})"


def _places(rows: Sequence[Row], metric: str) -> int:
    quantities = [row.quantities[metric] for row in rows]
    return words.decimals([q.sd for q in quantities], [q.mean for q in quantities])


def _digits(rows: Sequence[Row], metric: str) -> int:
    """Return the decimals of differences, which spread less than the values do."""
    quantities = [row.quantities[metric] for row in rows if not row.is_control]
    known = [q.difference for q in quantities if q.difference is not None]
    return words.decimals([q.difference_sd for q in quantities], known)


def _mean(quantity: Quantity, metric: str, places: int) -> str:
    if not quantity.values:
        return words.NONE
    if metric in ("cost/parameters", "cost/macs"):
        return words.scaled(quantity.mean)
    return words.spread(quantity.mean, quantity.sd, places)


def _badge(found: Comparison) -> str:
    text = _BADGES[found.verdict]
    return text if found.can_claim else f"{text}: too few seeds"


def _interval(found: Interval | None, places: int) -> str:
    if found is None:
        return words.NONE
    mark = " †" if found.method == "student" else ""
    return f"{words.signed(found.low, places)} to {words.signed(found.high, places)}{mark}"


def _published_digits(values: Sequence[float]) -> int:
    """Return the decimals with which figures were published, which is all that is known of them."""
    return next(n for n in range(7) if n == 6 or all(abs(v - round(v, n)) < 1e-9 for v in values))


def _controls(rows: Sequence[Row]) -> tuple[int, ...]:
    return tuple(i for i, row in enumerate(rows) if row.is_control)


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
