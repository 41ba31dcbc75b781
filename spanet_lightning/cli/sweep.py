"""Ablations and searches: studies that a YAML defines, run by any number of workers.

  run FILE           run what is left to do of a study; the same command again resumes it
  plan FILE          what would be run, with parameters, MACs and time; nothing is written
  status STUDY       how far it is; STUDY is a name, or the file
  stop STUDY         ask all workers to end
  retry STUDY        put failed trials back into the queue
  show STUDY TRIAL   one trial, with the command that repeats it

`spanet report STUDY` says what came out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanet_lightning.errors import ConfigError, invalid

if TYPE_CHECKING:
    import optuna

    from spanet_lightning.sweep.definition import Study
    from spanet_lightning.sweep.run import Outcome

TAKES_OVERRIDES = True
EXIT_FAILED = 1
DEFAULT_URL = "sqlite:///sweeps.db"  # `storage.DEFAULT_URL`, without importing optuna for it
_LINES = 4  # of what workers said, below the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument(
            "--storage",
            metavar="URL",
            default=DEFAULT_URL,
            help="sqlite:///FILE or postgresql://USER@HOST/DATABASE (default: %(default)s)",
        )
        return one

    run = add("run", "run what is left to do of a study")
    run.add_argument("file", metavar="FILE", help="the study, such as sweeps/digits/srf.yaml")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="trials at a time")
    text = "stop once the study has so many, complete or pruned (default: what it declares)"
    run.add_argument("--trials", type=int, metavar="N", help=text)
    text = "start none later than so long after the first one (default: what it declares)"
    run.add_argument("--hours", type=float, metavar="H", help=text)
    text = "failed trials in a row after which a worker ends (default: %(default)s)"
    run.add_argument("--failures", type=int, default=3, metavar="K", help=text)
    run.set_defaults(act=_run)

    plan = add("plan", "what would be run; nothing is written")
    plan.add_argument("file", metavar="FILE", help="the study")
    text = "do not take a few steps of each arm to estimate its time"
    plan.add_argument("--untimed", action="store_true", help=text)
    plan.set_defaults(act=_plan)

    status = add("status", "how far a study is")
    status.add_argument("study", metavar="STUDY", help="its name, or its file")
    status.add_argument("--json", action="store_true", help="print it as JSON")
    status.add_argument("--once", action="store_true", help="do not wait for changes")
    status.set_defaults(act=_status)

    stop = add("stop", "ask all workers of a study to end, on all machines")
    stop.add_argument("study", metavar="STUDY", help="its name, or its file")
    text = "do not wait for the trials that run; they go back into the queue"
    stop.add_argument("--now", action="store_true", help=text)
    stop.set_defaults(act=_stop)

    retry = add("retry", "put failed trials back into the queue")
    retry.add_argument("study", metavar="STUDY", help="its name, or its file")
    retry.add_argument("--failed", action="store_true", help="all that failed")
    retry.set_defaults(act=_retry)

    show = add("show", "one trial, with the command that repeats it")
    show.add_argument("study", metavar="STUDY", help="its name, or its file")
    show.add_argument("trial", metavar="TRIAL", type=int, help="its number")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(act=_show)


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

    from spanet_lightning.sweep import run as running
    from spanet_lightning.sweep import status
    from spanet_lightning.sweep.check import check_study

    settings = running.Settings(
        url=args.storage,
        workers=args.workers,
        trials=args.trials,
        hours=args.hours,
        failures=args.failures,
    )
    settings.check()
    definition = _read(args)
    check_study(definition)
    ledger, parent = running.prepare(definition, settings)
    console = Console()
    print(f"{definition.name}: {definition.question}", flush=True)
    if console.is_terminal:
        said: deque[str] = deque(maxlen=_LINES)
        with Live(console=console, auto_refresh=False) as live:
            shown = 0.0

            def show() -> None:
                nonlocal shown
                if time.monotonic() - shown >= 1:
                    table = status.view(ledger.study, definition, console.height - _LINES - 6)
                    live.update(Group(table, Text("\n".join(said), style="dim")), refresh=True)
                    shown = time.monotonic()

            outcome = running.run(definition, ledger, settings, said.append, parent.run_id, show)
            live.update(status.view(ledger.study, definition), refresh=True)
    else:

        def say(line: str) -> None:
            print(line, flush=True)

        outcome = running.run(definition, ledger, settings, say, parent.run_id)
    running.close_parent(parent, outcome)
    _end(args, definition, outcome)


def _end(args: argparse.Namespace, definition: Study, outcome: Outcome) -> None:
    """Say how it ended and what to do next; end with the exit code that tells it."""
    if outcome.mistake:
        raise ConfigError(outcome.mistake)
    found = [f"{count} {state}" for state, count in outcome.counts.items()]
    print(f"{definition.name}: {', '.join(found)}")
    study = [definition.name, *_storage_words(args)]
    failed = outcome.counts.get("failed", 0)
    if failed:
        print(f"why they failed: {shlex.join(['spanet', 'sweep', 'status', *study])}")
        print(f"try them again: {shlex.join(['spanet', 'sweep', 'retry', '--failed', *study])}")
    if outcome.sick:
        print(f"a worker ended, as {args.failures} of its trials failed in a row")
    if outcome.interrupted or outcome.unfinished:
        print(f"resume: {_command_again(args)}", flush=True)
        sys.exit(128 + outcome.interrupted if outcome.interrupted else EXIT_FAILED)
    print(f"report: {shlex.join(['spanet', 'report', *study])}", flush=True)
    if failed and definition.is_ablation:
        sys.exit(EXIT_FAILED)


def _plan(args: argparse.Namespace) -> None:
    from spanet_lightning.sweep.plan import plan, show

    show(plan(_read(args), timed=not args.untimed))


def _status(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.live import Live

    from spanet_lightning.sweep import status

    study, definition = _stored(args)
    if args.json:
        print(json.dumps(status.as_json(study, definition), indent=1, ensure_ascii=False))
        return
    console = Console()
    if args.once or not console.is_terminal:
        # As wide as it needs to be: what is piped is searched, not looked at.
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


def _stop(args: argparse.Namespace) -> None:
    ledger = _ledger(args)
    ledger.stop(args.now)
    print("asked all workers to end" + ("" if args.now else " after the trials that run"))


def _retry(args: argparse.Namespace) -> None:
    if not args.failed:
        raise ConfigError("spanet sweep retry: say what to try again: --failed")
    numbers = _ledger(args).retry_failed()
    if not numbers:
        print("no trial has failed that was not tried again")
        return
    print(f"back in the queue: {', '.join(map(str, numbers))}; `spanet sweep run` runs them")


def _show(args: argparse.Namespace) -> None:
    from spanet_lightning.sweep.records import TrialRecord

    study, definition = _stored(args)
    trials = study.get_trials(deepcopy=False)
    if not 0 <= args.trial < len(trials):
        raise invalid("TRIAL", args.trial, f"a number from 0 to {len(trials) - 1}")
    trial = trials[args.trial]
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
    if trial.state.is_finished() and trial.state.name != "FAIL":
        found["failure"] = found["reason"] = None
    if args.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    running = not trial.state.is_finished()
    for key, value in found.items():
        if value in (None, "", {}, ()) or (running and key in ("failure", "reason")):
            continue
        if key == "command":
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{key + ':':<19}{text}")
    print(f"\n{found['command']}" if record.command else "\nit has not been run yet")


# -- what the actions share


def _read(args: argparse.Namespace) -> Study:
    from spanet_lightning.sweep.parse import read_study, with_overrides

    study = read_study(args.file)
    return with_overrides(study, args.overrides) if args.overrides else study


def _name(args: argparse.Namespace) -> str:
    """Return the name of a study that was given by its name, or by its file."""
    text = str(args.study)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        from spanet_lightning.sweep.parse import read_study

        return read_study(text).name
    return text


def _stored(args: argparse.Namespace) -> tuple[optuna.Study, Study]:
    from spanet_lightning.sweep.storage import definition_of, load

    study = load(args.storage, _name(args))
    return study, definition_of(study)


def _ledger(args: argparse.Namespace) -> Any:
    from spanet_lightning.sweep.ledger import Ledger

    _, definition = _stored(args)
    ledger = Ledger(args.storage, definition)
    ledger.attach()
    return ledger


def _storage_words(args: argparse.Namespace) -> list[str]:
    from spanet_lightning.sweep.storage import safe_url

    return [] if args.storage == DEFAULT_URL else ["--storage", safe_url(args.storage)]


def _command_again(args: argparse.Namespace) -> str:
    """Return the command line that goes on with a study; a password in it is left out."""
    words = ["spanet", "sweep", "run", args.file]
    if args.workers != 1:
        words += ["--workers", str(args.workers)]
    for key, value in (("--trials", args.trials), ("--hours", args.hours)):
        words += [] if value is None else [key, str(value)]
    return shlex.join([*words, *_storage_words(args), *args.overrides])
