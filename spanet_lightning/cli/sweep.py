"""Ablations and searches: studies that a YAML defines, trials in parallel, interrupted and resumed.

  run FILE             run what is left to do of a study; the same command again resumes it
  plan FILE            what would be run, with parameters, MACs and time; nothing is written
  list                 the studies in a storage
  status STUDY         how far it is; STUDY is a name, or the file
  show STUDY [TRIAL]   its trials, or one of them with the command that repeats it
  stop STUDY           ask all commands that run it to end
  retry STUDY          run failed or deleted trials again
  extend STUDY         add seeds to an ablation

`spanet report STUDY` writes the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.errors import ConfigError, invalid

if TYPE_CHECKING:
    import optuna

    from spanet_lightning.sweep.store import StudyStore
    from spanet_lightning.sweep.study import Study
    from spanet_lightning.sweep.supervisor import Outcome

TAKES_OVERRIDES = True
EXIT_FAILED = 1
DEFAULT_URL = "sqlite:///sweeps.db"  # `storage.DEFAULT_URL`, without importing optuna for it
_LINES = 4  # of messages, below the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str, act: Any, study: str = "study") -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument(
            "--storage",
            metavar="URL",
            default=DEFAULT_URL,
            help="sqlite:///FILE or postgresql://USER@HOST/DATABASE (default: %(default)s)",
        )
        if study == "file":
            one.add_argument("file", metavar="FILE", help="such as sweeps/digits/v2_srf.yaml")
        elif study:
            one.add_argument("study", metavar="STUDY", help="its name, or its file")
        one.set_defaults(act=act)
        return one

    run = add("run", "run what is left to do of a study", _run, "file")
    text = "trials at a time (default: 1)"
    run.add_argument("--workers", type=int, metavar="N", help=text)
    text = "trials at a time on each GPU, for small models"
    run.add_argument("--workers-per-device", type=int, metavar="N", help=text)
    text = "stop once the study has so many, complete or pruned (default: what it declares)"
    run.add_argument("--trials", type=int, metavar="N", help=text)
    text = "start none later than so long after the first one (default: what it declares)"
    run.add_argument("--hours", type=float, metavar="H", help=text)
    text = "failed trials in a row after which no more are started (default: %(default)s)"
    run.add_argument("--failures", type=int, default=3, metavar="K", help=text)

    plan = add("plan", "what would be run; nothing is written", _plan, "file")
    text = "do not take a few steps of each arm to estimate its time"
    plan.add_argument("--untimed", action="store_true", help=text)

    listing = add("list", "the studies in a storage", _list, "")
    listing.add_argument("--json", action="store_true", help="print it as JSON")

    status = add("status", "how far a study is", _status)
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.add_argument("--once", action="store_true", help="do not wait for changes")

    text = "the trials of a study, or one of them with the command that repeats it"
    show = add("show", text, _show)
    text = "its number, or its arm and seed, as 'without SRF' 3 (default: list them)"
    show.add_argument("trial", metavar="TRIAL", nargs="*", help=text)
    show.add_argument("--json", action="store_true", help="print it as JSON")

    stop = add("stop", "ask all commands that run a study to end, on all machines", _stop)
    text = "do not wait for the trials that run; they go back into the queue"
    stop.add_argument("--now", action="store_true", help=text)

    retry = add("retry", "put trials back into the queue; `spanet sweep run` runs them", _retry)
    retry.add_argument("--failed", action="store_true", help="all that failed")
    text = "all complete ones whose run folder is gone, from scratch"
    retry.add_argument("--deleted", action="store_true", help=text)
    text = "these numbers, complete ones from scratch"
    retry.add_argument("--trials", type=int, nargs="+", metavar="TRIAL", help=text)

    text = "add seeds to an ablation; its report is exploratory from then on"
    extend = add("extend", text, _extend)
    extend.add_argument("--seeds", type=int, required=True, metavar="N", help="how many more")


def run(args: argparse.Namespace) -> None:
    """Do what was asked for.

    Raises:
        SpanetError: If the study, the storage or an argument is wrong.
    """
    if args.overrides and args.action not in ("run", "plan"):
        raise ConfigError(
            f"spanet sweep {args.action}: unrecognized arguments: {' '.join(args.overrides)}"
        )
    args.act(args)


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from spanet_lightning.sweep.server import start_server
    from spanet_lightning.sweep.study import read_study

    definition = read_study(args.file, args.overrides)
    start_server(configs=definition.configs)  # it imports what this process imports, meanwhile

    from spanet_lightning.sweep import status, storage, supervisor, tracker
    from spanet_lightning.sweep.check import check_study
    from spanet_lightning.sweep.command import fit_command, resolve
    from spanet_lightning.sweep.store import StudyStore

    settings = supervisor.Settings(
        url=args.storage,
        workers=args.workers,
        workers_per_device=args.workers_per_device,
        trials=args.trials,
        hours=args.hours,
        failures=args.failures,
    )
    settings.check()
    storage.refuse_tracker(settings.url, None)
    check_study(definition)
    config, _ = resolve(fit_command(definition, {}, 0))
    address = tracker.address(config)
    storage.refuse_tracker(settings.url, address[0] if address else None)
    store = StudyStore(settings.url, definition).create(config)
    run_id = tracker.open_run(store, *address) if address else ""
    definition = store.definition
    console = Console()
    print(f"{definition.name}: {definition.question}", flush=True)

    def say(line: str) -> None:
        print(line, flush=True)

    if console.is_terminal:
        said: deque[str] = deque(maxlen=_LINES)
        with Live(console=console, auto_refresh=False) as live:
            shown = 0.0

            def show() -> None:
                nonlocal shown
                if time.monotonic() - shown >= 1:
                    table = status.view(store.study, definition, console.height - _LINES - 6)
                    live.update(Group(table, Text("\n".join(said), style="dim")), refresh=True)
                    shown = time.monotonic()

            supervised = supervisor.Supervisor(store, settings, said.append, config, run_id, show)
            outcome = supervised.run()
            live.update(status.view(store.study, definition), refresh=True)
    else:
        outcome = supervisor.Supervisor(store, settings, say, config, run_id).run()
    if run_id and address:
        finished = not outcome.stopped and not outcome.interrupted
        tracker.close_run(address[0], run_id, finished=finished)
    _end(args, definition, outcome)


def _end(args: argparse.Namespace, definition: Study, outcome: Outcome) -> None:
    """Print how it ended and what to do next; exit with the code for it."""
    found = [f"{count} {state}" for state, count in outcome.counts.items()]
    print(f"{definition.name}: {', '.join(found)}")
    study = [definition.name, *_storage_words(args)]
    failed = outcome.counts.get("failed", 0)
    if failed:
        print(f"why they failed: {shlex.join(['spanet', 'sweep', 'status', *study])}")
        print(f"try them again: {shlex.join(['spanet', 'sweep', 'retry', '--failed', *study])}")
    if outcome.interrupted or outcome.stopped:
        print(f"ended by {outcome.stopped}; resume: {_command_again(args)}", flush=True)
        sys.exit(128 + outcome.interrupted if outcome.interrupted else EXIT_FAILED)
    print(f"report: {shlex.join(['spanet', 'report', *study])}", flush=True)
    if failed and definition.is_ablation:
        sys.exit(EXIT_FAILED)


def _plan(args: argparse.Namespace) -> None:
    from spanet_lightning.sweep.plan import plan, show
    from spanet_lightning.sweep.study import read_study

    show(plan(read_study(args.file, args.overrides), timed=not args.untimed))


def _list(args: argparse.Namespace) -> None:
    import optuna
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from spanet_lightning.summary import console
    from spanet_lightning.sweep import status, storage

    opened = storage.open_storage(args.storage, create=False)
    found: list[dict[str, Any]] = []
    with storage.one_line(args.storage):
        for name in storage.names(opened):
            study = optuna.load_study(study_name=name, storage=opened)
            if "definition" not in study.user_attrs:
                continue
            definition = storage.definition_of(study)
            counts = Counter(row.state for row in status.rows(study, definition))
            found.append({"study": name, "question": definition.question,
                          "declared": definition.declared, "counts": counts})  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("study", "trials", "state", "question"):
        table.add_column(column, overflow="fold")
    for one in found:
        states = ", ".join(f"{n} {state}" for state, n in one["counts"].items())
        table.add_row(one["study"], str(one["declared"] or "–"), states, escape(one["question"]))
    console(least=120).print(table if found else "no study yet: spanet sweep run FILE")


def _status(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.live import Live

    from spanet_lightning.sweep import status

    study, definition = _stored(args)
    if args.json:
        print(json.dumps(status.as_json(study, definition), indent=1, ensure_ascii=False))
        return
    console = Console()
    if args.action == "show" or args.once or not console.is_terminal:
        # As wide as it needs to be: what is piped is searched.
        wide = console if console.is_terminal else Console(width=200)
        wide.print(status.view(study, definition))
        return
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                found = status.rows(study, definition)
                over = not any(row.state == "running" for row in found)
                height = None if over else console.height - 6
                live.update(status.view(study, definition, height), refresh=True)
                if over:
                    return
                time.sleep(1)
        except KeyboardInterrupt:
            return


def _show(args: argparse.Namespace) -> None:
    from spanet_lightning.sweep.records import TrialRecord

    if not args.trial:
        _status(args)
        return
    study, definition = _stored(args)
    trial = _chosen(args.trial, study, definition)
    record = TrialRecord.from_attrs(trial.user_attrs)
    found: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "params": dict(trial.params or trial.system_attrs.get("fixed_params", {})),
        "values": {
            objective.metric: value
            for objective, value in zip(definition.objectives, trial.values or [], strict=False)
        },
        **dataclasses.asdict(record),
        "command": shlex.join(record.command),
    }
    if trial.state.name != "FAIL":
        found["failure"] = found["reason"] = None
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for key, value in found.items():
        if value in (None, "", {}, ()) or key == "command":
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{key + ':':<19}{text}")
    print(f"\n{found['command']}" if record.command else "\nit has not been run yet")


def _chosen(words: list[str], study: optuna.Study, definition: Study) -> Any:
    """Return a trial by its number, or the last one of an arm and a seed."""
    trials = study.get_trials(deepcopy=False)
    if len(words) == 1 and words[0].isdigit():
        if int(words[0]) < len(trials):
            return trials[int(words[0])]
        raise invalid("TRIAL", int(words[0]), f"a number from 0 to {len(trials) - 1}")
    if definition.ablation and len(words) == 2:
        from spanet_lightning.errors import invalid_choice

        arm, seed = words
        if arm not in definition.ablation.arms:
            raise invalid_choice("TRIAL", arm, definition.ablation.arms)
        for trial in reversed(trials):
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            if params.get("arm") == arm and str(params.get("seed")) == seed:
                return trial
        known = ", ".join(map(str, definition.ablation.seeds))
        raise invalid("TRIAL", seed, f"one of the seeds {known}")
    raise invalid("TRIAL", " ".join(words), "the number of a trial, or an arm and a seed")


def _stop(args: argparse.Namespace) -> None:
    _store(args).stop(now=args.now)
    print("asked all commands to end" + ("" if args.now else " after the trials that run"))


def _retry(args: argparse.Namespace) -> None:
    if sum((args.failed, args.deleted, args.trials is not None)) != 1:
        raise ConfigError(
            "spanet sweep retry: expected one of --failed, --deleted and --trials TRIAL ..."
        )
    numbers = _store(args).retry(args.trials, deleted=args.deleted)
    if not numbers:
        print("no such trial that was not tried again")
        return
    print(f"back in the queue: {', '.join(map(str, numbers))}; `spanet sweep run` runs them")


def _extend(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise invalid("--seeds", args.seeds, "at least 1")
    added = _store(args).extend(args.seeds)
    print(
        f"added the seeds {', '.join(map(str, added))}; `spanet sweep run` runs them. Verdicts are "
        "exploratory from now on: the number of seeds was chosen after a look at the results"
    )


# -- what the actions share


def _name(args: argparse.Namespace) -> str:
    """Return the name of a study that was given by its name, or by its file."""
    text = str(args.study)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        from spanet_lightning.sweep.study import read_study

        return read_study(text).name
    return text


def _stored(args: argparse.Namespace) -> tuple[optuna.Study, Study]:
    from spanet_lightning.sweep.storage import definition_of, load

    study = load(args.storage, _name(args))
    return study, definition_of(study)


def _store(args: argparse.Namespace) -> StudyStore:
    from spanet_lightning.sweep.store import FORMAT, StudyStore

    study, definition = _stored(args)
    if study.user_attrs.get("format") != FORMAT:
        raise ConfigError(
            f"study: {definition.name!r} was begun by version 1, which alone can continue it; "
            f"report it with: spanet report {definition.name}"
        )
    return StudyStore(args.storage, definition).attach()


def _storage_words(args: argparse.Namespace) -> list[str]:
    from spanet_lightning.sweep.storage import safe_url

    return [] if args.storage == DEFAULT_URL else ["--storage", safe_url(args.storage)]


def _command_again(args: argparse.Namespace) -> str:
    """Return the command line that resumes a study, without the password of its storage."""
    words = ["spanet", "sweep", "run", args.file]
    for key in ("workers", "workers_per_device", "trials", "hours"):
        value = getattr(args, key)
        words += [] if value is None else [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join([*words, *_storage_words(args), *args.overrides])
