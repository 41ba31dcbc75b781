"""Find, compare and repeat what MLflow holds.

RUN is an id, its first digits, or a name. `repeat` exits with 0 where all metrics come out the same
bit for bit, with 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from spanet_lightning.errors import ConfigError, did_you_mean, invalid

if TYPE_CHECKING:
    from spanet_lightning.tracking.browse import RunView

EXIT_DIFFERENT = 1
# Tags that a column is made of where any run has them.
_TAGS = ("study", "arm", "seed", "task", "backbone", "head", "dataset")
_FIELDS = {"started": "start_time", "ended": "end_time", "name": "run_name", "status": "status"}
_MOST_METRICS = 3  # columns, where none are asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `spanet runs`."""
    text = "database or server (default: MLFLOW_TRACKING_URI, or mlflow.db here)"
    parser.add_argument("--tracking-uri", default=None, metavar="URI", help=text)
    parser.add_argument("--experiment", default=None, help="only runs of this one (default: all)")
    parser.add_argument(
        "--filter",
        default="",
        metavar="EXPR",
        help="in MLflow's words: \"tags.study = 'x' and metrics.`val/top1` > 0.9\"",
    )
    text = "metric, tag, parameter, or started, name; the largest first (default: started)"
    parser.add_argument("--sort", default="started", metavar="KEY", help=text)
    parser.add_argument("--ascending", action="store_true", help="the smallest first")
    parser.add_argument("--limit", type=int, default=20, help="runs at most (default: 20)")
    text = "metrics, tags or parameters, by commas (default: the tested, or the best, metrics)"
    parser.add_argument("--columns", default=None, metavar="KEYS", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(act=_list)

    again = argparse.ArgumentParser(add_help=False)
    again.add_argument("--tracking-uri", default=argparse.SUPPRESS, metavar="URI")
    again.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", parents=[again], help="all that is known of a run")
    show.add_argument("run", metavar="RUN")
    show.set_defaults(act=_show)
    diff = actions.add_parser("diff", parents=[again], help="what two runs have different")
    diff.add_argument("first", metavar="A")
    diff.add_argument("second", metavar="B")
    diff.set_defaults(act=_diff)
    repeat = actions.add_parser(
        "repeat", parents=[again], help="run it again and compare all metrics bit for bit"
    )
    repeat.add_argument("run", metavar="RUN")
    repeat.set_defaults(act=_repeat)


def run(args: argparse.Namespace) -> None:
    """Do what was asked for.

    Raises:
        ConfigError: If there is no such store or run, or an argument is wrong.
    """
    if args.limit < 1:
        raise invalid("--limit", args.limit, "at least 1")
    args.act(args)


def _list(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import Store

    store = Store(args.tracking_uri)
    sample = store.search(args.experiment, args.filter, limit=200)
    order = _order(args.sort, args.ascending, sample)
    runs = store.search(args.experiment, args.filter, [order], args.limit)
    if args.json:
        print(json.dumps([one.as_dict() for one in runs], indent=1))
        return
    columns = _columns(args.columns, runs)
    tags = [tag for tag in _TAGS if _varies(tag, runs) and tag not in columns]
    table = _table(
        f"Runs in {store.shown}", ["run", "id", "status", "started", "took", *tags], columns, True
    )
    for one in runs:
        cells = [one.name, one.id[:8], one.status, f"{one.started:%m-%d %H:%M}", _took(one.seconds)]
        cells += [one.tags.get(tag, "") for tag in tags]
        cells += [_value(_values(one).get(name)) for name in columns]
        table.add_row(*map(escape, cells))
    _print(table, least=110 + 12 * len(columns))
    if not runs:
        print("No runs.")


def _show(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import Store

    store = Store(args.tracking_uri)
    one = store.find(args.run)
    account = store.account(one)
    if args.json:
        print(json.dumps({**one.as_dict(), "account": account}, indent=1))
        return
    facts = account or {}
    parts: dict[str, Mapping[str, Any]] = {
        "Run": {
            "run": one.name,
            "id": one.id,
            "experiment": one.experiment,
            "status": one.status,
            "started": f"{one.started:%Y-%m-%d %H:%M:%S}",
            "took": _took(one.seconds),
            **dict(sorted(one.own_tags().items())),
            "artifacts": one.artifacts,
        },
        "Metrics (last values)": dict(sorted(one.metrics.items())),
        "Configuration": dict(sorted(one.params.items())),
        "Hardware and versions": {
            **(facts.get("hardware") or {}),
            **(facts.get("versions") or {}),
        },
    }
    for title, rows in parts.items():
        if rows:
            table = _table(title, ["", ""], [])
            table.show_header = False
            for name, value in rows.items():
                table.add_row(escape(name), escape(_value(value)))
            _print(table)


def _diff(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import Store, differences

    store = Store(args.tracking_uri)
    a, b = store.find(args.first), store.find(args.second)
    accounts = [store.account(one) or {} for one in (a, b)]
    config = differences(a.params, b.params)
    about = differences(a.own_tags(), b.own_tags())
    for part in ("versions", "hardware"):
        pairs = differences(*(one.get(part) or {} for one in accounts))
        about |= {f"{part}.{key}": pair for key, pair in pairs.items() if key != "load_average"}
    for key in ("command", "folder", "name"):  # which only say which run it is, and where
        config.pop(key, None)
        about.pop(key, None)
    metrics = {n: (a.metrics.get(n), b.metrics.get(n)) for n in sorted({*a.metrics, *b.metrics})}
    if args.json:
        document = {"a": a.id, "b": b.id, "config": config, "about": about, "metrics": metrics}
        print(json.dumps(document, indent=1, sort_keys=True))
        return
    titles = [f"{letter}: {one.name} ({one.id[:8]})" for letter, one in (("A", a), ("B", b))]
    for title, pairs in (("Configuration", config), ("Code, data and machine", about)):
        if not pairs:
            print(f"{title}: the same\n")
            continue
        table = _table(f"{title}: differences", [""], titles)
        for name, pair in sorted(pairs.items()):
            texts = ("–" if value is None else str(value) for value in pair)
            table.add_row(*map(escape, (name, *texts)))
        _print(table)
    table = _table("Metrics (last values)", [""], [*titles, "B - A"])
    for name, (x, y) in metrics.items():
        change = "" if x is None or y is None else f"{y - x:+.4g}" if y != x else "0"
        table.add_row(escape(name), _value(x), _value(y), change)
    _print(table)


def _repeat(args: argparse.Namespace) -> None:
    from spanet_lightning.cli.repeat import repeat
    from spanet_lightning.tracking.browse import Store

    store = Store(args.tracking_uri)
    one = store.find(args.run)
    print(f"Repeating {one.name} ({one.id})", flush=True)
    found = repeat(store, one, lambda line: print(line, flush=True))
    again = f"(repeated as {found.run_id[:8]})"
    if not found.different:
        print(f"Bit for bit the same: {found.points} points of {found.metrics} metrics {again}")
        return
    columns = ["it was", "it is now", "difference", "points that differ"]
    table = _table("Not the same", ["metric"], columns)
    for d in found.different:
        change = "" if d.then is None or d.now is None else f"{d.now - d.then:+.3g}"
        cells = (d.name, _value(d.then), _value(d.now), change, f"{d.points} of {d.total}")
        table.add_row(*map(escape, cells))
    _print(table)
    print(f"{len(found.different)} of {found.metrics} metrics differ {again}")
    sys.exit(EXIT_DIFFERENT)


def _order(key: str, ascending: bool, sample: Sequence[RunView]) -> str:
    """Return what to sort by in MLflow's language: a key alone does not say what it is of.

    Raises:
        ConfigError: If no run has such a key.
    """
    way = "ASC" if ascending else "DESC"
    for kind in ("metrics", "tags", "params"):
        if key not in _FIELDS and any(key in getattr(one, kind) for one in sample):
            return f"{kind}.`{key}` {way}"
    if key in _FIELDS or not sample:
        return f"attributes.{_FIELDS.get(key, 'start_time')} {way}"
    known = [*_FIELDS, *sorted({name for one in sample for name in _values(one)})]
    raise ConfigError(
        f"--sort: got {key!r}, which no run has, expected a metric, a tag or a parameter"
        f"{did_you_mean(key, known)}"
    )


def _columns(asked: str | None, runs: Sequence[RunView]) -> list[str]:
    """Return the columns of figures: those asked for, or the best and the tested metrics."""
    known = {name for one in runs for name in _values(one)}
    if asked is not None:
        columns = [name.strip() for name in asked.split(",") if name.strip()]
        for name in columns:
            if runs and name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"--columns: got {name!r}, which no run has{hint}")
        return columns
    kinds = ("best.val/", "test/", "val/")
    return [n for kind in kinds for n in sorted(known) if n.startswith(kind)][:_MOST_METRICS]


def _varies(tag: str, runs: Sequence[RunView]) -> bool:
    """Whether a tag is worth a column: the task of runs of one task alone is not."""
    values = {one.tags.get(tag) for one in runs}
    return values != {None} and (len(values) > 1 or tag in ("seed", "backbone", "dataset"))


def _values(one: RunView) -> dict[str, Any]:
    return {**one.params, **one.tags, **one.metrics}


def _table(title: str, names: Sequence[str], figures: Sequence[str], wide: bool = False) -> Table:
    """Return an empty table: columns of names, and of figures, which are aligned to the right."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for name in (*names, *figures):
        justify: Any = "right" if name in figures else "left"
        table.add_column(escape(name), justify=justify, no_wrap=wide, overflow="fold")
    return table


def _print(table: Table, least: int = 0) -> None:
    from spanet_lightning.summary import console

    console(least).print(table)


def _value(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _took(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds))).removeprefix("0:")
