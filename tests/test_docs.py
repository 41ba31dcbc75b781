"""If one of these fails, the documentation names something that is not there."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from spanet_lightning.cli import app
from spanet_lightning.cli.arguments import Arguments

ROOT = Path(__file__).parent.parent
PLACES = sorted(
    {
        (document.relative_to(ROOT).as_posix(), *place)
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for place in re.findall(r"`([\w./-]+\.py)::(\w+)`", document.read_text())
    }
)


@pytest.mark.parametrize(("document", "file", "name"), PLACES)
def test_every_named_place_exists(document, file, name):
    tree = ast.parse((ROOT / file).read_text())
    names = {node.name for node in tree.body if hasattr(node, "name")}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert name in names, f"{document} names {file}::{name}"


def test_every_local_link_leads_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links {target}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_spanet_commands_in_the_docs_are_accepted(page):
    """Commands and options exist; nothing is run."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^``` ?(\S*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "".join(block for language, block in blocks if language in ("", "bash")).splitlines()
    for line in lines:
        if not line.startswith("spanet "):
            continue
        _, name, *rest = shlex.split(line, comments=True)
        module, parser = app._parser(name)
        _, unknown = parser.parse_known_args(rest)
        assert not unknown or getattr(module, "TAKES_OVERRIDES", False), f"{line}: {unknown}"


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages(part)]


def test_the_navigation_of_the_site_has_every_page():
    pages = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    files = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "report.md"]
    assert sorted(pages) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in files)


def test_what_the_reference_lists_exists():
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            parent = importlib.import_module(module)
            known = hasattr(parent, attribute) or importlib.util.find_spec(name)
            assert known, f"{page.name} lists {name}"


RECORDS = sorted((ROOT / "docs" / "results" / "performance").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_speed_ups_in_the_docs_are_those_of_the_records(path):
    record = json.loads(path.read_text())
    page = {"heads": "dense.md", "sweep": "sweep.md"}.get(record["benchmark"], "performance.md")
    text = (ROOT / "docs" / page).read_text()
    assert record["command"] in text
    if record["benchmark"] == "models":
        for found in record["ratios"]:
            s = found["speedup"]
            shown = f"{s['median']:.2f} ({s['q1']:.2f}–{s['q3']:.2f})"
            assert shown in text, (found["subject"], found["against"], found["mode"])


def test_the_costs_of_heads_in_the_docs_are_those_of_the_record():
    found = json.loads((ROOT / "docs/results/performance/heads.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "dense.md").read_text(encoding="utf-8")
    for row in found["results"]:
        (line,) = [li for li in text.splitlines() if li.startswith(f"| {row['subject']} |")]
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        cells = cells[:3] if row["mode"] == "eval" else cells[3:]
        assert cells[0] == f"{row['images_per_second']:.2f}"
        assert cells[2] == f"{row['memory']['peak'] / 1e6:,.0f}"


def test_readme_renders_without_the_checkout():
    """PyPI shows README alone: a relative link or image leads nowhere there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all("://" in target for target in re.findall(r"\]\(([^)]+)\)", text))
    pages = re.findall(r"`(docs/[\w-]+\.md)`", text)
    assert pages
    assert all((ROOT / page).is_file() for page in pages)
    assert len(text.split()) <= 1200


def test_commands_in_readme_are_accepted():
    """Options and packaged names exist; nothing is run."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for line in "".join(block for language, block in blocks if not language).splitlines():
        program, name, *rest = shlex.split(line, comments=True)
        if program == "lightning" and "FILE" not in rest:
            args = [item.replace("PATH", "data") for item in rest]
            assert Arguments.parse([name, *args]).config["model"]
        if program == "spanet":
            assert name in app.COMMANDS
