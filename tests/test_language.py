"""If one of these fails, a phrase that nobody in the field would use has come back.

Documentation, messages and docstrings are idiomatic technical English. Each phrase is listed with
what is written instead.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

INSTEAD = {
    r"\bare tests\b": "are verified by tests",
    r"\ba thread takes away\b": "disappears on one thread",
    r"\bwhat is around\b": "everything else",
    r"\bbroken off\b": "interrupted",
    r"\bis no number\b|\bno numbers?\b(?! of)": "is not finite, non-finite",
    r"\bgoes on (where|with)\b": "resumes",
    r"\bimages of a step\b": "global batch size",
    r"\bwhat became of\b": "how … was handled",
    r"\bcan't be used out\b": "excludes unreadable",
    r"\bpictures of what was\b": "visualised predictions",
    r"\bmore than chance\b|\bby chance may\b": "significantly",
    r"\bsizes not\b": "compare directions, not magnitudes",
    r"\bone an? (gate|head|draw|image|line|row|block)\b": "one per …",
    r"\bfirst begin to last end\b": "wall-clock time",
    r"\btakes itself\b": "shuts itself down",
    r"\bnothing waits\b": "no pending records",
    r"\bstored turned\b": "EXIF-rotated",
    r"\bsteers? a run\b": "validation set",
    r"\bis to learn\b": "regression target",
    r"\bis away\b": "is unavailable, is unreachable",
    r"\bfigures out of\b": "metrics from",
    r"\b(blame|ledger)\b": "error message, event log",
    r"\btaps?\b": "hook, feature map",
}


@cache
def _texts() -> dict[str, list[str]]:
    """Return all prose by file: pages, and the strings of the package, docstrings included."""
    found = {}
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if path.name != "report.md":  # written by the program
            found[path.relative_to(ROOT).as_posix()] = [path.read_text(encoding="utf-8")]
    for path in (ROOT / "spanet_lightning").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        strings = [node.value for node in nodes if isinstance(node, ast.Constant)]
        name = path.relative_to(ROOT).as_posix()
        found[name] = [text for text in strings if isinstance(text, str)]
    return found


@pytest.mark.parametrize("phrase", INSTEAD)
def test_a_phrase_does_not_come_back(phrase):
    pattern = re.compile(phrase.replace(r" ", r"\s+"))
    for file, texts in _texts().items():
        for text in texts:
            found = pattern.search(text)
            if found:
                line = " ".join(text[max(0, found.start() - 30) : found.end() + 30].split())
                pytest.fail(f"{file}: “…{line}…”; write: {INSTEAD[phrase]}")
