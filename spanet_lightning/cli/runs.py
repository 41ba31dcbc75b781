"""Find, compare and repeat what MLflow holds.

RUN is an id, its first digits, or a name. `repeat` exits with 0 where all metrics come out the same
bit for bit, with 1 where they do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
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
    table = Table(title=f"Runs in {escape(store.shown)}", title_justify="left", box=box.SIMPLE_HEAD)
    shown = [tag for tag in _TAGS if _tells(tag, runs) and tag not in columns]
    for name in ("run", "id", "status", "started", "took"):
        table.add_column(name, no_wrap=True)
    for name in shown:
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for one in runs:
        cells = [one.name, one.id[:8], one.status, f"{one.started:%m-%d %H:%M}", _took(one.seconds)]
        cells += [one.tags.get(tag, "") for tag in shown]
        cells += [_value(_lookup(one, name)) for name in columns]
        table.add_row(*map(escape, cells))
    _console(110 + 12 * len(columns)).print(table)
    if not runs:
        print("No runs.")


def _show(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import Store

    store = Store(args.tracking_uri)
    one = store.find(args.run)
    if args.json:
        print(json.dumps({**one.as_dict(), "account": store.account(one)}, indent=1))
        return
    head = {
        "run": one.name,
        "id": one.id,
        "experiment": one.experiment,
        "status": one.status,
        "started": f"{one.started:%Y-%m-%d %H:%M:%S}",
        "took": _took(one.seconds),
        **dict(sorted(one.own_tags().items())),
        "artifacts": one.artifacts,
    }
    out = _console()
    out.print(_table("Run", head))
    out.print(
        _table("Metrics (last values)", {k: _value(v) for k, v in sorted(one.metrics.items())})
    )
    out.print(_table("Configuration", dict(sorted(one.params.items()))))
    account = store.account(one) or {}
    known = {**(account.get("hardware") or {}), **(account.get("versions") or {})}
    if known:
        out.print(_table("Hardware and versions", {k: str(v) for k, v in known.items()}))


def _diff(args: argparse.Namespace) -> None:
    from spanet_lightning.tracking.browse import Store, differences

    store = Store(args.tracking_uri)
    a, b = store.find(args.first), store.find(args.second)
    # Those that only say which run it is, and where.
    aside = ("command", "folder", "name")
    about = {k: v for k, v in differences(a.own_tags(), b.own_tags()).items() if k not in aside}
    config = {k: v for k, v in differences(a.params, b.params).items() if k not in aside}
    accounts = [store.account(one) or {} for one in (a, b)]
    for part in ("versions", "hardware"):
        pairs = differences(*(one.get(part) or {} for one in accounts))
        about |= {f"{part}.{k}": v for k, v in pairs.items() if k != "load_average"}
    if args.json:
        metrics = {n: (a.metrics.get(n), b.metrics.get(n)) for n in {*a.metrics, *b.metrics}}
        document = {"a": a.id, "b": b.id, "config": config, "about": about, "metrics": metrics}
        print(json.dumps(document, indent=1, sort_keys=True))
        return
    out = _console()
    titles = (f"{a.name} ({a.id[:8]})", f"{b.name} ({b.id[:8]})")
    for title, pairs in (("Configuration", config), ("Code, data and machine", about)):
        if not pairs:
            out.print(f"{title}: the same\n", highlight=False)
            continue
        table = _side_by_side(f"{title}: what is different", titles)
        for name, (first, second) in sorted(pairs.items()):
            table.add_row(*map(escape, (name, _text(first), _text(second))))
        out.print(table)
    table = _side_by_side("Metrics (last values)", titles, "B - A")
    for name in sorted({*a.metrics, *b.metrics}):
        x, y = a.metrics.get(name), b.metrics.get(name)
        change = "" if x is None or y is None else f"{y - x:+.4g}" if y != x else "0"
        table.add_row(escape(name), _value(x), _value(y), change)
    out.print(table)


def _repeat(args: argparse.Namespace) -> None:
    from spanet_lightning.cli.repeat import repeat
    from spanet_lightning.tracking.browse import Store

    store = Store(args.tracking_uri)
    one = store.find(args.run)
    print(f"Repeating {one.name} ({one.id})", flush=True)
    found = repeat(store, one, lambda line: print(line, flush=True))
    if not found.different:
        print(
            f"Bit for bit the same: {found.points} points of {found.metrics} metrics "
            f"(repeated as {found.run_id[:8]})"
        )
        return
    table = Table(title="Not the same", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("metric", "it was", "it is now", "difference", "points that differ"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for d in found.different:
        change = "" if d.then is None or d.now is None else f"{d.now - d.then:+.3g}"
        cells = (d.name, _value(d.then), _value(d.now), change, f"{d.points} of {d.total}")
        table.add_row(*map(escape, cells))
    _console().print(table)
    print(
        f"{len(found.different)} of {found.metrics} metrics differ (repeated as {found.run_id[:8]})"
    )
    sys.exit(EXIT_DIFFERENT)


def _order(key: str, ascending: bool, sample: Sequence[RunView]) -> str:
    """Return what to sort by in MLflow's words: a key alone does not say what it is of.

    Raises:
        ConfigError: If no run has such a key.
    """
    way = "ASC" if ascending else "DESC"
    if key in _FIELDS:
        return f"attributes.{_FIELDS[key]} {way}"
    known = [*_FIELDS]
    for kind in ("metrics", "tags", "params"):
        names = {name for one in sample for name in getattr(one, kind)}
        if key in names:
            return f"{kind}.`{key}` {way}"
        known += sorted(names)
    if not sample:
        return f"attributes.start_time {way}"
    raise ConfigError(
        f"--sort: got {key!r}, which no run has, expected a metric, a tag or a parameter"
        f"{did_you_mean(key, known)}"
    )


def _columns(asked: str | None, runs: Sequence[RunView]) -> list[str]:
    """Return the columns of figures: those asked for, or the few that say most."""
    if asked is not None:
        columns = [name.strip() for name in asked.split(",") if name.strip()]
        known = {
            name for one in runs for kind in (one.metrics, one.tags, one.params) for name in kind
        }
        for name in columns:
            if runs and name not in known:
                raise ConfigError(
                    f"--columns: got {name!r}, which no run has{did_you_mean(name, known)}"
                )
        return columns
    names = {name for one in runs for name in one.metrics}
    tested = sorted(name for name in names if name.startswith("test/"))
    best = sorted({tag for one in runs for tag in one.tags if tag.startswith("best.val/")})
    validated = sorted(name for name in names if name.startswith("val/"))
    return [*best, *tested, *validated][:_MOST_METRICS]


def _tells(tag: str, runs: Sequence[RunView]) -> bool:
    """Whether a tag's column says something: the task of runs of one task alone does not."""
    values = {one.tags.get(tag) for one in runs}
    return values != {None} and (len(values) > 1 or tag in ("seed", "backbone", "dataset"))


def _lookup(one: RunView, name: str) -> Any:
    for kind in (one.metrics, one.tags, one.params):
        if name in kind:
            return kind[name]
    return None


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table


def _side_by_side(title: str, runs: Sequence[str], *more: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", style="bold", overflow="fold")
    for letter, name in zip("AB", runs, strict=True):
        table.add_column(f"{letter}: {escape(name)}", justify="right", overflow="fold")
    for name in more:
        table.add_column(name, justify="right")
    return table


def _console(least: int = 0) -> Any:
    from spanet_lightning.summary import console

    return console(least)


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
