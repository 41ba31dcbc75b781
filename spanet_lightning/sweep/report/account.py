"""What every report says of a study: its budget, where each row comes from, how to repeat it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable

from spanet_lightning.sweep.definition import Ablation
from spanet_lightning.sweep.report import words
from spanet_lightning.sweep.report.ablation import changes
from spanet_lightning.sweep.report.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Commands,
    Section,
    Table,
)
from spanet_lightning.sweep.report.gather import Gathered, Trial


def facts(found: Gathered) -> tuple[tuple[str, str], ...]:
    """Return name and value of what one wants to know first.

    Args:
        found: The study.
    """
    study, budget = found.study, found.budget
    told = []
    if isinstance(study.method, Ablation):
        told.append(("arms", str(len(study.method.arms))))
        told.append(("seeds each", str(len(study.method.seeds))))
    else:
        told.append(("sampler", study.method.sampler))
        told.append(("parameters", str(len(study.method.space))))
    of = "" if budget.declared is None else f" of {budget.declared}"
    ended = budget.complete + budget.pruned
    told.append(("trials", f"{ended}{of}"))
    told.append(("hours of training", words.three_digits(budget.hours)))
    hardware = _shared(found, lambda t: t.record.hardware)
    told.append(("hardware", hardware[0] if len(hardware) == 1 else f"{len(hardware)} kinds"))
    return tuple(one for one in told if one[1] != "0 kinds")


def warnings(found: Gathered) -> list[str]:
    """Return what one should know before believing anything of it.

    Args:
        found: The study.
    """
    budget, complete = found.budget, found.complete
    said = []
    if budget.unfinished:
        ended = budget.complete + budget.pruned
        of = "" if budget.declared is None else f" of {budget.declared}"
        said.append(
            f"Unfinished: {ended}{of} trials have ended, {budget.running} run, {budget.waiting} "
            "wait. All of this may change."
        )
    dirty = [t.number for t in complete if t.record.dirty]
    if dirty:
        said.append(
            f"The code of {words.counted(len(dirty), 'trial')} was not committed "
            f"({_numbers(dirty)}): the commit alone does not repeat them."
        )
    for name, read in (
        ("commit", lambda t: t.record.commit[:10]),
        ("data set", lambda t: t.record.data),
        ("kind of hardware", lambda t: t.record.hardware),
    ):
        values = _shared(found, read)
        if len(values) > 1:
            said.append(f"Trials are of more than one {name}: {words.listed(values)}.")
    return said


def sections(found: Gathered) -> tuple[Section, ...]:
    """Return budget, provenance and definition.

    Args:
        found: The study.
    """
    return (
        Section("Budget", _budget(found)),
        Section("Provenance", _provenance(found)),
        Section("The experiment", _experiment(found)),
    )


def _budget(found: Gathered) -> tuple[Block, ...]:
    budget = found.budget
    declared = words.NONE if budget.declared is None else str(budget.declared)
    names = ("asked for", "complete", "pruned", "failed", "stopped", "retried", "running")
    values = (
        declared,
        *(budget.complete, budget.pruned, budget.failed, budget.stopped, budget.retried),
        budget.running,
    )
    row = [Cell("trials"), *(Cell(str(value)) for value in values), Cell(str(budget.waiting))]
    row += [
        Cell(f"{words.three_digits(budget.hours)} h"),
        Cell(f"{words.three_digits(budget.elapsed)} h"),
    ]
    blocks: list[Block] = [
        Table(
            caption="All that was spent, whether it is in a mean or not",
            columns=(
                Column("", numeric=False),
                *(Column(name) for name in names),
                Column("waiting"),
                Column("hours of all trials"),
                Column("from first begin to last end"),
            ),
            rows=(tuple(row),),
            notes=(
                "retried: further attempts at trials whose worker was killed; each is counted "
                "under how it ended, too. stopped: by hand, and tried again.",
            ),
        )
    ]
    failed = [t for t in found.trials if t.state == "FAIL"]
    if failed:
        retries = {
            t.record.retry_of: t.number for t in found.trials if t.record.retry_of is not None
        }
        blocks.append(
            Table(
                caption="What went wrong",
                columns=(
                    Column("trial"),
                    Column("what it was", numeric=False),
                    Column("failure", numeric=False),
                    Column("reason", numeric=False),
                    Column("tried again as"),
                ),
                rows=tuple(
                    (
                        Cell(str(t.number)),
                        Cell(_label(t)),
                        Cell(t.record.failure or "killed"),
                        Cell(t.record.reason or "its worker ended without a word"),
                        Cell(str(retries.get(t.number, words.NONE))),
                    )
                    for t in failed
                ),
            )
        )
    return tuple(blocks)


def _provenance(found: Gathered) -> tuple[Block, ...]:
    ended = [t for t in found.trials if t.complete or t.state == "PRUNED"]
    blocks: list[Block] = [
        "Trials are those of Optuna's storage (`optuna-dashboard STORAGE` shows them), runs those "
        "of MLflow (`spanet ui`): each trial keeps the id of its run, and each run the number of "
        "its trial."
        + (f" Run of the whole study: `{found.run_id}`." if found.run_id else "")
        + " Every row was checked against the fingerprint that was taken when its trial ended."
    ]
    if not ended:
        return tuple(blocks)
    written = {name: [write(t) for t in ended] for name, write in _ORIGINS.items()}
    shared = {name: texts[0] for name, texts in written.items() if len(set(texts)) == 1}
    if shared and len(ended) > 1:
        same = "; ".join(f"{name} {text}" for name, text in shared.items())
        blocks.append(f"The same for every row: {same}.")
    else:
        shared = {}
    columns = {name: texts for name, texts in written.items() if name not in shared}
    blocks.append(
        Table(
            caption="Where each value comes from",
            columns=(
                Column("trial"),
                Column("what it was", numeric=False),
                Column("state", numeric=False),
                Column(found.study.objectives[0].metric),
                *(Column(name, numeric=False) for name in columns),
            ),
            rows=tuple(
                (
                    Cell(str(t.number)),
                    Cell(_label(t)),
                    Cell(t.state.lower()),
                    Cell(words.plain(t.values[0]) if t.values else words.NONE),
                    *(Cell(texts[i]) for texts in columns.values()),
                )
                for i, t in enumerate(ended)
            ),
            notes=(
                ("+: with changes that were not committed.",)
                if any(t.record.dirty for t in ended)
                else ()
            ),
        )
    )
    commands = tuple((f"trial {t.number}: {_label(t)}", _command(t)) for t in ended)
    blocks.append(Commands("The command that repeats each trial", commands))
    return tuple(blocks)


def _commit(trial: Trial) -> str:
    return _code(trial.record.commit[:10]) + (" +" if trial.record.dirty else "")


_ORIGINS: dict[str, Callable[[Trial], str]] = {
    "commit": _commit,
    "data": lambda t: t.record.data or words.NONE,
    "hardware": lambda t: t.record.hardware or words.NONE,
    "config": lambda t: _code(t.record.config_hash[:10]),
    "run": lambda t: _code(t.record.run_id),
}


def _experiment(found: Gathered) -> tuple[Block, ...]:
    study = found.study
    at = ", ".join(
        f"{o.metric} ({'more' if o.goal == 'max' else 'less'} is better, at the {o.at} epoch)"
        for o in study.objectives
    )
    items = [
        f"**Configuration**: {words.listed([f'`{path}`' for path in study.configs])}",
        f"**Changed for all trials**: {changes(study.overrides) or 'nothing'}",
        f"**Objective{'s' if len(study.objectives) > 1 else ''}**: {at}",
        f"**Definition**: study `{study.name}`, fingerprint `{study.digest()}`",
    ]
    blocks: list[Block] = [Bullets(tuple(items))]
    if study.note:
        blocks.insert(0, study.note)
    return tuple(blocks)


def _label(trial: Trial) -> str:
    if trial.record.arm:
        return f"{trial.record.arm}, seed {trial.record.seed}"
    if "arm" in trial.params:
        return f"{trial.params['arm']}, seed {trial.params.get('seed')}"
    return ", ".join(
        f"{name} = {words.plain(value) if isinstance(value, float) else value}"
        for name, value in trial.params.items()
    )


def _command(trial: Trial) -> str:
    command = trial.record.command
    return shlex.join(("lightning", *command) if command[:1] == ("fit",) else command)


def _code(text: str) -> str:
    return f"`{text}`" if text else words.NONE


def _numbers(found: list[int]) -> str:
    shown = ", ".join(map(str, found[:8]))
    return f"{'trial' if len(found) == 1 else 'trials'} {shown}{', …' if len(found) > 8 else ''}"


def _shared(found: Gathered, read: Callable[[Trial], str]) -> list[str]:
    """Return the different values that complete trials have, the most frequent first."""
    counts = Counter(read(t) for t in found.complete)
    return [value for value, _ in counts.most_common() if value]
