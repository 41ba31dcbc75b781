"""What the report of a search says."""

from __future__ import annotations

import json
from collections.abc import Callable

from spanet_lightning.report import figures
from spanet_lightning.report import formatting as fmt
from spanet_lightning.report.document import Block, Column, Items, Section, Table, Tone
from spanet_lightning.report.results import Results, Trial
from spanet_lightning.sweep.statistics import mean_sd
from spanet_lightning.sweep.study import Parameter, Search

MIN_TRIALS = 10
"""Complete trials below which importance is not shown: the best tenth would be one trial."""
_SHOWN = 10
_COSTS: dict[str, tuple[str, Callable[[Trial], str]]] = {
    "cost/parameters": ("parameters", lambda t: fmt.scaled(t.record.parameters)),
    "cost/macs": ("MACs", lambda t: fmt.scaled(t.record.macs)),
    "cost/train_seconds": ("training time", lambda t: fmt.duration(t.record.train_seconds)),
}


def verdict(results: Results) -> tuple[str, Tone]:
    """Return what the search found, and how little that proves."""
    objectives, complete = results.study.objectives, results.complete
    if not complete:
        return "No answer yet: no trial is complete.", "undecided"
    count = fmt.counted(len(complete), "complete trial")
    confirm = "confirm it by an ablation with several seeds"
    if len(objectives) > 1:
        front = pareto_front(results)
        names = fmt.listed([o.metric for o in objectives])
        return (
            f"Of {count}, {len(front)} on the Pareto front of {names}. Each is a single training "
            f"selected on validation: {confirm}.",
            "undecided",
        )
    best = ranked(results)[0]
    space = list(_method(results).space.values())
    params = ", ".join(f"{p.name} = {_param(best, p)}" for p in space if p.name in best.params)
    return (
        f"Best of {count}: trial {best.number} with {objectives[0].metric} "
        f"{fmt.plain(best.values[0])} ({params}). It is a single training, selected as the best of "
        f"many: {confirm}.",
        "undecided",
    )


def ranked(results: Results) -> list[Trial]:
    """Return the complete trials, best first by the first objective."""
    sign = -results.study.objectives[0].sign
    return sorted(results.complete, key=lambda t: (sign * t.values[0], t.number))


def pareto_front(results: Results) -> list[Trial]:
    """Return the trials that no other trial dominates, best first by the first objective."""
    numbers = {trial.number for trial in results.stored.best_trials}
    return [trial for trial in ranked(results) if trial.number in numbers]


def warnings(results: Results) -> list[str]:
    """Return what a reader should know before believing the search."""
    points = [json.dumps(dict(sorted(t.params.items()))) for t in results.complete]
    repeated = len(points) - len(set(points))
    if not repeated:
        return []
    return [
        f"{fmt.counted(repeated, 'trial')} repeat a point that another trial has with the same "
        "seed: they are no further evidence."
    ]


def sections(results: Results) -> list[Section]:
    """Return the parts that only a search has."""
    found = []
    if results.complete:
        blocks: list[Block] = [_best_table(results)]
        if len(results.study.objectives) == 2:
            blocks.append(figures.draw_pareto(results))
        found.append(Section("Results", blocks))
        found.append(Section("History", [figures.draw_history(results)]))
        blocks = [f"Importance requires at least {MIN_TRIALS} complete trials."]
        if len(results.complete) >= MIN_TRIALS:
            blocks = [figures.draw_importance(results)]
        blocks.append(figures.draw_slices(results))
        found.append(Section("Parameters", blocks))
    found.append(Section("Space", [_space_table(results)]))
    found.append(Section("How to read this", [_reading(results)]))
    return found


def _best_table(results: Results) -> Table:
    objectives, test = results.study.objectives, results.study.test
    several = len(objectives) > 1
    trials = pareto_front(results) if several else ranked(results)[:_SHOWN]
    selected = {t.number for t in (trials if several else trials[:1])}
    costs = [c for name, c in _COSTS.items() if name not in [o.metric for o in objectives]]
    space = list(_method(results).space.values())
    columns = [Column("trial"), *(Column(o.metric) for o in objectives)]
    columns += [Column(p.name, numeric=p.choices is None) for p in space]
    columns += [Column(title) for title, _ in costs] + ([Column(test)] if test else [])
    by_objective = [[t.values[i] for t in results.complete] for i in range(len(objectives))]
    # One digit more than a mean deserves, to show the order of the trials.
    places = [fmt.decimals([mean_sd(v)[1]], v) + 1 for v in by_objective]
    rows = []
    for trial in trials:
        row = [str(trial.number)]
        for value, objective, digits in zip(trial.values, objectives, places, strict=True):
            whole = objective.metric in ("cost/parameters", "cost/macs")
            row.append(fmt.scaled(value) if whole else fmt.number(value, digits))
        row += [_param(trial, p) for p in space] + [write(trial) for _, write in costs]
        if test:
            tested = trial.record.test.get(test) if trial.number in selected else None
            row.append(fmt.number(tested, places[0]))
        rows.append(row)
    what = "Pareto front" if several else f"Best {fmt.counted(len(rows), 'trial')}"
    notes = []
    if test:
        of = "trials on the front" if several else "the selected trial"
        notes.append(f"{test} is shown for {of} only, of the checkpoint selected on validation.")
    caption = f"{what} by {fmt.listed([o.metric for o in objectives])}"
    return Table(caption, columns, rows, notes, None if several else 0)


def _space_table(results: Results) -> Table:
    rows = []
    for parameter in _method(results).space.values():
        if parameter.choices is not None:
            values = ", ".join(
                label if str(value) == label else f"{label} = {json.dumps(value)}"
                for label, value in parameter.choices.items()
            )
        else:
            kind = "integers" if parameter.int_range else "numbers"
            values = f"{kind} from {fmt.plain(parameter.low)} to {fmt.plain(parameter.high)}"
            if parameter.step is not None:
                values += f" in steps of {fmt.plain(parameter.step)}"
            values += ", log scale" if parameter.log else ""
        if parameter.when is not None:
            ((other, allowed),) = parameter.when.items()
            values += f"; where {other} is {' or '.join(map(str, allowed))}"
        rows.append([parameter.name, parameter.key, values])
    columns = [
        Column("parameter", numeric=False),
        Column("key", numeric=False, code=True),
        Column("values", numeric=False),
    ]
    return Table("Search space", columns, rows)


def _reading(results: Results) -> Items:
    method = _method(results)
    pruner = "no pruning" if method.pruner == "none" else f"its {method.pruner} pruner"
    return Items(
        [
            (
                "Sampling",
                f"Optuna's {method.sampler} sampler, seed {method.seed}; {pruner}. Every trial "
                f"trains with seed {method.train_seed}.",
            ),
            (
                "The best trial",
                "looks better than it is, because it was selected. Its figure on the test split is "
                "free of that selection; its rank is not.",
            ),
            (
                "Importance",
                "PED-ANOVA: what distinguishes the best tenth of the trials from all of them. It "
                "is no effect size, and depends on the ranges.",
            ),
            ("Pruned trials", "appear in the history only."),
        ]
    )


def _param(trial: Trial, parameter: Parameter) -> str:
    value = trial.params.get(parameter.name)
    if value is None:
        return fmt.NONE
    return fmt.plain(value) if isinstance(value, float) else str(value)


def _method(results: Results) -> Search:
    method = results.study.method
    if not isinstance(method, Search):
        raise TypeError(f"study {results.study.name!r} is an ablation")
    return method
