"""What the report of a search says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from spanet_lightning.sweep.definition import Choice, Parameter, Search
from spanet_lightning.sweep.report import search_figures, words
from spanet_lightning.sweep.report.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Section,
    Table,
    Tone,
)
from spanet_lightning.sweep.report.gather import Gathered, Trial
from spanet_lightning.sweep.report.importance import LEAST_TRIALS, importances
from spanet_lightning.sweep.statistics import mean_sd

_SHOWN = 10


def verdict(found: Gathered) -> tuple[str, Tone]:
    """Return what the search found, and how little that proves.

    Args:
        found: The study.
    """
    objectives, complete = found.study.objectives, found.complete
    if not complete:
        return "No answer yet: no trial is complete.", "inconclusive"
    if len(objectives) > 1:
        front = search_figures.pareto_front(complete, objectives)
        names = words.listed([o.metric for o in objectives])
        return (
            f"Of {words.counted(len(complete), 'complete trial')}, {len(front)} "
            f"{'is' if len(front) == 1 else 'are'} on the Pareto front of {names}. Each is one "
            "training, selected on validation: confirm those that you mean to use by an ablation "
            "with several seeds.",
            "inconclusive",
        )
    best = ranked(found)[0]
    return (
        f"Best of {words.counted(len(complete), 'complete trial')}: trial {best.number} with "
        f"{objectives[0].metric} {words.plain(best.values[0])} "
        f"({_params(best, _method(found).space)}). It is one training, the luckiest of those that "
        "were tried: confirm it by an ablation with several seeds.",
        "inconclusive",
    )


def ranked(found: Gathered) -> list[Trial]:
    """Return the complete trials, the best by the first objective first.

    Args:
        found: The study.
    """
    sign = -1 if found.study.objectives[0].goal == "max" else 1
    return sorted(found.complete, key=lambda t: (sign * t.values[0], t.number))


def sections(found: Gathered) -> tuple[Section, ...]:
    """Return the parts that only a search has.

    Args:
        found: The study.
    """
    method, objectives, complete = _method(found), found.study.objectives, found.complete
    results: list[Block] = []
    if complete:
        results.append(_best(found))
    if complete and len(objectives) > 1:
        front = search_figures.pareto_front(complete, objectives)
        results.append(search_figures.pareto(complete, front, objectives))
    made = [Section("Results", tuple(results))] if results else []
    if complete:
        history = search_figures.history(found.trials, objectives[0])
        made.append(Section("History", (history,)))
        mattered: list[Block] = []
        shares = importances(complete, 0, objectives[0].goal)
        if shares:
            mattered.append(search_figures.importance(shares, objectives[0].metric))
        else:
            mattered.append(
                f"Importance is not told of fewer than {LEAST_TRIALS} complete trials: the best "
                "tenth of them would be one."
            )
        mattered.append(search_figures.parallel(complete, method.space, objectives))
        made.append(Section("What mattered", tuple(mattered)))
    made.append(Section("The space", (_space(found),)))
    made.append(Section("How to read this", (_reading(found),)))
    return tuple(made)


def _best(found: Gathered) -> Table:
    method, study = _method(found), found.study
    objectives = study.objectives
    several = len(objectives) > 1
    order = ranked(found)
    if several:
        front = search_figures.pareto_front(found.complete, objectives)
        order = [t for t in order if t.number in front]
        selected = {t.number for t in order}
    else:
        selected = {order[0].number}
        order = order[:_SHOWN]
    columns = [Column("trial"), *(Column(o.metric) for o in objectives)]
    columns += [Column(p.name, numeric=not isinstance(p, Choice)) for p in method.space]
    costs: dict[str, tuple[str, Callable[[Trial], str]]] = {
        "cost/parameters": ("parameters", lambda t: words.scaled(t.record.parameters)),
        "cost/macs": ("MACs", lambda t: words.scaled(t.record.macs)),
        "cost/train_seconds": ("training time", lambda t: words.duration(t.record.train_seconds)),
    }
    shown = [costs[name] for name in costs if name not in [o.metric for o in objectives]]
    columns += [Column(title) for title, _ in shown]
    if study.test:
        columns.append(Column(study.test))
    # One digit more than a mean would deserve: the order of the trials is to be seen.
    columns_of = [[t.values[i] for t in found.complete] for i in range(len(objectives))]
    places = [words.decimals([mean_sd(v)[1]], v) + 1 for v in columns_of]
    body = []
    for trial in order:
        cells = [Cell(str(trial.number))]
        for i, objective in enumerate(objectives):
            value = trial.values[i]
            whole = objective.metric in ("cost/parameters", "cost/macs")
            cells.append(Cell(words.scaled(value) if whole else words.number(value, places[i])))
        cells += [Cell(_param(trial, p)) for p in method.space]
        cells += [Cell(write(trial)) for _, write in shown]
        if study.test:
            tested = trial.record.test.get(study.test) if trial.number in selected else None
            cells.append(Cell(words.number(tested, places[0])))
        body.append(tuple(cells))
    notes = []
    if study.test:
        which = "the trials of the front" if several else "the selected trial"
        notes.append(
            f"{study.test} is told of {which} alone, of the checkpoint that was best on validation."
        )
    what = "The Pareto front" if several else f"The best {len(body)} trials"
    return Table(
        caption=f"{what} by {words.listed([o.metric for o in objectives])}",
        columns=tuple(columns),
        rows=tuple(body),
        notes=tuple(notes),
        strong=() if several else (0,),
    )


def _space(found: Gathered) -> Table:
    body = []
    for one in _method(found).space:
        if isinstance(one, Choice):
            values = ", ".join(
                label if str(value) == label else f"{label} = `{json.dumps(value)}`"
                for label, value in one.values.items()
            )
        else:
            kind = "whole numbers" if one.kind == "int" else "numbers"
            values = f"{kind} from {words.plain(one.low)} to {words.plain(one.high)}"
            values += f" in steps of {words.plain(one.step)}" if one.step is not None else ""
            values += ", logarithmic" if one.log else ""
        if one.when is not None:
            allowed = " or ".join(str(v) for v in one.when.values)
            values += f"; where {one.when.parameter} is {allowed}"
        body.append((Cell(one.name), Cell(f"`{one.key}`"), Cell(values)))
    return Table(
        caption="What the trials were drawn from",
        columns=(
            Column("parameter", numeric=False),
            Column("key", numeric=False),
            Column("values", numeric=False),
        ),
        rows=tuple(body),
    )


def _reading(found: Gathered) -> Bullets:
    method = _method(found)
    pruner = f"its {method.pruner} pruner ends weak trials"
    if method.pruner == "none":
        pruner = "nothing is pruned"
    return Bullets(
        (
            f"**Who drew**: Optuna's {method.sampler} sampler, seed {method.seed}; {pruner}. Every "
            f"trial trains with seed {method.train_seed}.",
            "**The best** of many trials looks better than it is: part of what put it in front is "
            "chance. Its figure on the test split is free of that; its rank is not.",
            "**Importance** says where the good trials of this space and this budget were; it "
            "is no effect size, and it changes with the ranges.",
            "**Pruned** trials are in the history and in nothing else.",
        )
    )


def _param(trial: Trial, parameter: Parameter) -> str:
    value = trial.params.get(parameter.name)
    if value is None:
        return words.NONE
    return words.plain(value) if isinstance(value, float) else str(value)


def _params(trial: Trial, space: Sequence[Parameter]) -> str:
    present = [p for p in space if p.name in trial.params]
    return ", ".join(f"{p.name} = {_param(trial, p)}" for p in present)


def _method(found: Gathered) -> Search:
    method = found.study.method
    if not isinstance(method, Search):
        raise TypeError("the study is no search")
    return method
