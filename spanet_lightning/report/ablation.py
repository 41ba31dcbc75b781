"""What the report of an ablation says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from spanet_lightning.report import figures
from spanet_lightning.report import formatting as fmt
from spanet_lightning.report.arms import COST_TOLERANCE, ArmResult, Quantity
from spanet_lightning.report.document import Block, Column, Items, Section, Table, Tone
from spanet_lightning.report.results import Results
from spanet_lightning.sweep.statistics import ALPHA, MAX_SEEDS, POWER, Interval
from spanet_lightning.sweep.statistics import seeds_needed as plan_seeds
from spanet_lightning.sweep.study import Overrides

_FLAG = "\N{NO-BREAK SPACE}⚑"
_SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "○"}


def verdict(results: Results, arms: Sequence[ArmResult]) -> tuple[str, Tone]:
    """Return the answer to the question, as far as there is one."""
    method, objective = results.ablation, results.study.objectives[0]
    others = [arm for arm in arms if not arm.is_control]
    compared = [arm for arm in others if arm.comparison is not None]
    control = f"the control ({method.control})"
    if not compared:
        return f"No answer yet: no arm can be compared with {control}.", "undecided"
    digits = _difference_digits(arms, objective.metric)
    sentences: list[str] = []
    tone: Tone = "undecided"
    for claim in ("better", "worse", "equivalent"):
        mine = [arm for arm in compared if arm.comparison and arm.comparison.verdict == claim]
        if not mine:
            continue
        names = fmt.listed([f"{a.arm.name} ({_effect(a, objective.metric, digits)})" for a in mine])
        verb = "is" if len(mine) == 1 else "are"
        if claim == "equivalent":
            relation = f"equivalent to {control} within ±{fmt.plain(objective.margin or 0)}"
        else:
            relation = f"{claim} than {control}"
        sentences.append(f"{names} {verb} {relation} in {objective.metric}.")
        tone = tone if tone != "undecided" else claim
    sentences += [_undecided(arm, objective.metric, len(others), digits) for arm in compared]
    if results.dropped:
        dropped = fmt.listed([f"{arm} (after {n} seeds)" for arm, n in results.dropped.items()])
        saved = fmt.counted(results.budget.dropped, "trial")
        sentences.append(f"Dropped as no longer able to be better: {dropped}; {saved} saved.")
    left = len(others) - len(compared) - len(results.dropped)
    if left:
        sentences.append(f"{fmt.counted(left, 'arm')} could not be compared.")
    if results.extended:
        sentences.insert(0, f"Exploratory, as seeds were added after {results.extended[0]}:")
    return " ".join(filter(None, sentences)), tone


def _undecided(arm: ArmResult, metric: str, family: int, digits: int) -> str:
    """Say what would decide about an arm; empty for a decided one."""
    comparison = arm.comparison
    if comparison is None or comparison.verdict != "undecided":
        return ""
    name, n = arm.arm.name, len(comparison.seeds)
    if comparison.identical:
        return (
            f"{name} agrees with the control exactly in all {n} seeds: the two may be the same "
            "model in effect."
        )
    sentence = f"{name} is undecided ({_effect(arm, metric, digits)})"
    if not comparison.can_claim:
        least = plan_seeds(1.0, 0.0, family)
        sentence += f": {fmt.counted(family, 'comparison')} cannot reach p ≤ {ALPHA} with "
        sentence += f"{fmt.counted(n, 'seed')}; at least {least} are required"
    if comparison.detectable is not None:
        detectable = fmt.number(comparison.detectable, digits)
        sentence += f"; {n} seeds detect a difference of {detectable} with {POWER:.0%} power"
    needed = comparison.seeds_needed
    if needed is not None and needed > n:
        sentence += f"; {needed - n} further seeds would decide with {POWER:.0%} power"
    elif needed is None and math.isfinite(comparison.sd):
        sentence += f"; more than {MAX_SEEDS} seeds would be needed"
    return f"{sentence}."


def warnings(results: Results, arms: Sequence[ArmResult]) -> list[str]:
    """Return what a reader should know before believing the comparison."""
    found = [f"Not compared: {arm.refusal}." for arm in arms if arm.refusal]
    if results.extended:
        before = ", then ".join(map(str, results.extended))
        found.append(
            f"Seeds were added after a look at the results (first {before}): how many there are "
            f"depends on what was seen, and the error rate of {ALPHA:.0%} does not hold. Confirm a "
            "verdict by a new study with new seeds."
        )
    costly = [f"{a.arm.name} ({_relative(a)} of the control's)" for a in arms if a.differs_in_cost]
    if costly:
        found.append(
            f"MACs differ from the control's by more than {COST_TOLERANCE:.0%} in "
            f"{fmt.listed(costly)}: a difference may be due to size rather than to design."
        )
    test = results.study.test
    objective = results.study.objectives[0]
    for arm in arms:
        if not test or arm.comparison is None:
            continue
        interval = arm.quantities[test].interval
        if interval is None or interval.low <= 0 <= interval.high:
            continue
        sign = objective.sign
        tested = "better" if sign * interval.low > 0 else "worse"
        if tested != arm.comparison.verdict:
            digits = _difference_digits(arms, test)
            found.append(
                f"Validation and test disagree on {arm.arm.name}: {arm.comparison.verdict} by "
                f"{objective.metric}, but the 95% interval of {test} "
                f"({_interval(interval, digits)}) excludes 0. The test split is no basis of the "
                "verdict."
            )
    return found


def sections(results: Results, arms: Sequence[ArmResult]) -> list[Section]:
    """Return the parts that only an ablation has."""
    objective = results.study.objectives[0]
    blocks: list[Block] = [_results_table(results, arms)]
    if any(arm.trials for arm in arms):
        blocks.append(figures.draw_seeds(arms, objective))
    blocks += _test_and_published(results, arms)
    found = [Section("Results", blocks), Section("Cost", [_cost_table(arms)])]
    if any(trial.curve for arm in arms for trial in arm.trials):
        found.append(Section("Learning curves", [figures.draw_curves(arms, objective)]))
    changes = [[a.arm.name, format_overrides(a.arm.overrides) or "–"] for a in arms]
    columns = [Column("arm", numeric=False), Column("changes", numeric=False, code=True)]
    table = Table(
        "What each arm changes in the experiment", columns, changes, strong=_control(arms)
    )
    found.append(Section("Arms", [table]))
    found.append(Section("How to read this", [_reading(results)]))
    return found


def format_overrides(overrides: Overrides) -> str:
    """Write overrides as they are typed: `model.backbone.srf=false`."""
    return "; ".join(f"{key}={json.dumps(value)}" for key, value in overrides.items())


def _results_table(results: Results, arms: Sequence[ArmResult]) -> Table:
    objective, *more = results.study.objectives
    metric = objective.metric
    digits, places = _difference_digits(arms, metric), _places(arms, metric)
    columns = [
        Column("arm", numeric=False),
        Column("seeds"),
        Column(f"{metric}, mean ± sd"),
        Column("difference"),
        Column("95% CI"),
        Column("p (Holm)"),
        *([Column("p, equivalence")] if objective.margin is not None else []),
        Column("verdict", numeric=False),
        *(Column(f"{o.metric}, mean ± sd") for o in more),
    ]
    at = next(i for i, column in enumerate(columns) if column.title == "verdict")
    rows, tones = [], {}
    for i, arm in enumerate(arms):
        quantity, comparison = arm.quantities[metric], arm.comparison
        row = [arm.arm.name + (_FLAG if arm.differs_in_cost else ""), str(len(arm.trials))]
        row.append(_mean(quantity, places))
        if comparison is None:
            row += [fmt.NONE] * (at - 3)
            row.append("control" if arm.is_control else "not compared")
            tones[i, at] = "muted" if arm.is_control else "flag"
        else:
            row += [
                fmt.signed(comparison.mean, digits),
                _interval(quantity.interval, digits),
                fmt.p_value(comparison.holm_p),
            ]
            if objective.margin is not None:
                row.append(fmt.p_value(comparison.equivalence_p))
            exploratory = " (exploratory)" if results.extended else ""
            row.append(f"{_SYMBOLS[comparison.verdict]} {comparison.verdict}{exploratory}")
            tones[i, at] = comparison.verdict
        row += [_mean(arm.quantities[o.metric], _places(arms, o.metric)) for o in more]
        rows.append(row)
    notes = []
    if any(arm.differs_in_cost for arm in arms):
        notes.append(f"⚑ MACs differ from the control's by more than {COST_TOLERANCE:.0%}.")
    caption = f"Each arm beside the control, by {metric}"
    return Table(caption, columns, rows, notes, _control(arms), tones)  # type: ignore[arg-type]


def _test_and_published(results: Results, arms: Sequence[ArmResult]) -> list[Block]:
    test, published = results.study.test, any(arm.arm.published is not None for arm in arms)
    if not (test or published):
        return []
    columns, notes = [Column("arm", numeric=False)], []
    rows = [[arm.arm.name] for arm in arms]
    if test:
        columns += [Column(f"{test}, mean ± sd"), Column("difference"), Column("95% CI")]
        digits, places = _difference_digits(arms, test), _places(arms, test)
        for row, arm in zip(rows, arms, strict=True):
            quantity = arm.quantities[test]
            row.append(_mean(quantity, places))
            row.append(fmt.NONE if arm.is_control else fmt.signed(quantity.difference, digits))
            row.append(fmt.NONE if arm.is_control else _interval(quantity.interval, digits))
        notes.append(
            f"{test} is that of the checkpoint selected on validation, evaluated once after "
            "training. It is no basis of the verdict."
        )
    if published:
        columns += [Column("published"), Column("difference, published")]
        base = next((arm.arm.published for arm in arms if arm.is_control), None)
        for row, arm in zip(rows, arms, strict=True):
            value = arm.arm.published
            row.append(fmt.NONE if value is None else fmt.plain(value))
            same = arm.is_control or value is None or base is None
            row.append(fmt.NONE if same else fmt.signed(value - base, 1))  # type: ignore[operator]
        notes.append(
            "Published figures are in the paper's unit, of its data set and of one seed unless the "
            "paper says otherwise: compare directions, not magnitudes."
        )
    caption = "On the test split, and published" if test else "Published"
    return [Table(caption, columns, rows, notes, _control(arms))]


def _cost_table(arms: Sequence[ArmResult]) -> Table:
    titles = ("parameters", "MACs per image", "relative MACs", "images/s", "training time")
    return Table(
        caption="Cost of each arm",
        columns=[Column("arm", numeric=False), *map(Column, titles)],
        rows=[
            [
                arm.arm.name,
                fmt.NONE if arm.parameters is None else f"{arm.parameters:,}",
                fmt.scaled(arm.macs),
                _relative(arm),
                fmt.rate(arm.images_per_second),
                fmt.duration(arm.train_seconds),
            ]
            for arm in arms
        ],
        notes=[
            "Throughput and time are means over the seeds, measured during training beside other "
            "trials; for a benchmark use spanet bench models."
        ],
        strong=_control(arms),
    )


def _reading(results: Results) -> Items:
    objective = results.study.objectives[0]
    family = fmt.counted(len(results.ablation.arms) - 1, "comparison")
    items = [
        ("Values", f"{objective.metric} at the {objective.at} epoch of each run, on validation."),
        ("Difference", "Arm minus control with the same seed, averaged over seeds."),
        (
            "95% CI",
            "Confidence interval of the mean difference; assumes normally distributed differences. "
            "It speaks about other seeds of this experiment, not about other data or model sizes.",
        ),
        (
            "p (Holm)",
            f"Exact two-sided sign-flip test, corrected for {family}: the chance of any false "
            f"“better” or “worse” in this table is at most {ALPHA:.0%}. With n seeds, p is at "
            "least 2/2ⁿ before the correction.",
        ),
        (
            "Undecided",
            "Neither a difference nor equivalence was shown. The number of further seeds assumes "
            "the observed spread"
            + (" and difference." if objective.margin is None else " and the margin."),
        ),
    ]
    if objective.margin is not None:
        items.insert(
            4,
            (
                "Equivalent",
                f"Two one-sided t-tests against the margin ±{fmt.plain(objective.margin)}, which "
                "the study's definition states; corrected likewise.",
            ),
        )
    return Items(items)


def _effect(arm: ArmResult, metric: str, digits: int) -> str:
    quantity = arm.quantities[metric]
    text = fmt.signed(quantity.difference, digits)
    if quantity.interval is None:
        return text
    return f"{text}, 95% CI {_interval(quantity.interval, digits)}"


def _interval(found: Interval | None, digits: int) -> str:
    if found is None:
        return fmt.NONE
    return f"{fmt.signed(found.low, digits)} to {fmt.signed(found.high, digits)}"


def _mean(quantity: Quantity, places: int) -> str:
    return fmt.spread(quantity.mean, quantity.sd, places) if quantity.values else fmt.NONE


def _places(arms: Sequence[ArmResult], metric: str) -> int:
    quantities = [arm.quantities[metric] for arm in arms]
    return fmt.decimals([q.sd for q in quantities], [q.mean for q in quantities])


def _difference_digits(arms: Sequence[ArmResult], metric: str) -> int:
    quantities = [arm.quantities[metric] for arm in arms]
    widths = [q.interval.high - q.interval.low for q in quantities if q.interval]
    return fmt.decimals([width / 4 for width in widths], [q.difference or 0 for q in quantities])


def _relative(arm: ArmResult) -> str:
    return fmt.NONE if arm.relative_macs is None else f"{arm.relative_macs:.0%}"


def _control(arms: Sequence[ArmResult]) -> int | None:
    return next((i for i, arm in enumerate(arms) if arm.is_control), None)
