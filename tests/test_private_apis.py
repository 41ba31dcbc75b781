"""Private parts of other libraries: few, listed with their reasons, and there in what is installed.

If this fails after an upgrade, the named library has changed beneath us: look at the file in the
table of docs/reliability.md before raising the bound in pyproject.toml.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import spanet_lightning

PACKAGE = Path(spanet_lightning.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
# Public in all but name, as their documentation says.
DOCUMENTED = {"_asdict", "_replace", "_exit", "_dynamo", "_inductor", "_compat_pickle"}
MOST = 12


def listed() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the private names of the table by the modules that they are in."""
    table = PAGE.read_text().split("## Private parts of other libraries", 1)[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    found = re.compile(r"`([\w.]+)`").findall
    return {tuple(found(modules)): tuple(found(names)) for modules, names in rows}


def private_names() -> Iterator[tuple[str, str]]:
    """Yield the private names that the package uses and does not define, with their place."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    defined = set()
    for _, node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            defined.add(node.attr)
    for path, node in nodes:
        place = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute):
            inherited = isinstance(node.value, ast.Call) and "super" in ast.dump(node.value.func)
            if _is_private(node.attr) and (inherited or node.attr not in defined):
                yield node.attr, place
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != (
            PACKAGE.name
        ):
            yield from (
                (part, place) for part in (node.module or "").split(".") if _is_private(part)
            )


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(("modules", "names"), listed().items(), ids=str)
def test_private_part_is_still_there(modules: tuple[str, ...], names: tuple[str, ...]):
    specs = {module: importlib.util.find_spec(module) for module in modules}
    gone = [module for module, spec in specs.items() if spec is None or spec.origin is None]
    assert not gone, f"{', '.join(gone)} is gone; docs/reliability.md says who uses it"
    source = "\n".join(Path(str(spec and spec.origin)).read_text() for spec in specs.values())
    gone = [name for name in names if not re.search(rf"\b{name}\b", source)]
    assert not gone, (
        f"{' and '.join(modules)} no longer have {', '.join(gone)}; docs/reliability.md says who "
        "uses it"
    )


def test_no_other_private_part_is_used_and_the_list_is_short():
    table = listed()
    assert len(table) <= MOST
    known = {name for names in table.values() for name in names} | DOCUMENTED
    unlisted = sorted({f"{place}: {name}" for name, place in private_names() if name not in known})
    assert not unlisted
