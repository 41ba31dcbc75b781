"""A report as one page of HTML that needs nothing else: no script, no network, light or dark."""

from __future__ import annotations

import base64
import re
from html import escape

from spanet_lightning.sweep.report import svg
from spanet_lightning.sweep.report.document import (
    Block,
    Bullets,
    Cell,
    Commands,
    Document,
    Picture,
    Section,
    Table,
)
from spanet_lightning.sweep.report.scene import Scene

_STYLE = """
:root { color-scheme: light dark; LIGHT --panel: #f7f9fb; --line: #d9dfe7;
  --warn: #8a5a00; --warn-back: #fff6e0; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { DARK --panel: #1a2029;
  --line: #323b49; --warn: #f0c264; --warn-back: #2c2615; --code: #222a35; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text); font: 16px/1.55 FONT; }
main { max-width: 1104px; margin: 0 auto; padding: 40px 32px 80px; }
header .kind { color: var(--muted); font-size: 13px; letter-spacing: .08em;
  text-transform: uppercase; margin: 0 0 8px; }
h1 { font-size: 30px; line-height: 1.25; margin: 0 0 20px; max-width: 30em; text-wrap: balance; }
h2 { font-size: 21px; margin: 44px 0 12px; padding-top: 18px; border-top: 1px solid var(--line); }
p, li { max-width: 52em; }
.verdict { border-left: 5px solid var(--control); background: var(--panel); font-size: 18px;
  line-height: 1.5; padding: 16px 22px; margin: 0 0 22px; border-radius: 0 8px 8px 0; }
.verdict.better { border-color: var(--better); }
.verdict.worse { border-color: var(--worse); }
.verdict p { margin: 0; max-width: none; }
dl.facts { display: flex; flex-wrap: wrap; gap: 12px 36px; margin: 0 0 22px; }
dl.facts div { display: flex; flex-direction: column-reverse; }
dl.facts dt { color: var(--muted); font-size: 13px; }
dl.facts dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.warnings { list-style: none; padding: 0; margin: 0 0 22px; }
.warnings li { background: var(--warn-back); color: var(--warn); border-radius: 8px;
  padding: 9px 16px; margin: 0 0 8px; font-size: 15px; max-width: none; }
nav { font-size: 14px; margin: 0; }
nav a { color: var(--main); margin-right: 18px; text-decoration: none; white-space: nowrap; }
nav a:hover, nav a:focus { text-decoration: underline; }
.wide { overflow-x: auto; margin: 18px 0 8px; }
.wide:focus-visible { outline: 2px solid var(--main); outline-offset: 3px; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.4; min-width: 50%; }
caption { text-align: left; color: var(--muted); font-size: 14px; padding: 0 0 8px; }
th, td { padding: 8px 11px; text-align: left; vertical-align: top; }
th:first-child, td:first-child { padding-left: 8px; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
tbody tr { border-bottom: 1px solid var(--grid); }
tbody tr:hover { background: var(--band); }
tr.strong th, tr.strong td { background: var(--panel); font-weight: 600; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n, td code { white-space: nowrap; }
td.better { color: var(--better); font-weight: 600; white-space: nowrap; }
td.worse { color: var(--worse); font-weight: 600; white-space: nowrap; }
td.inconclusive, td.muted { color: var(--muted); }
td.inconclusive { min-width: 9.5em; }
tbody th { min-width: 9em; } tbody th.n { min-width: 0; }
td.flag { color: var(--warn); }
.note { color: var(--muted); font-size: 13.5px; margin: 6px 0; }
figure { margin: 26px 0 8px; }
figure .scroll { overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 720px; height: auto; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: 13.5px; margin-top: 6px; max-width: 62em; }
code { background: var(--code); border-radius: 4px; padding: .1em .35em; overflow-wrap: anywhere;
  font: .88em/1.5 ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
details { margin: 16px 0; }
summary { cursor: pointer; color: var(--main); }
details dt { font-size: 14px; margin-top: 12px; }
details dd { margin: 2px 0 0; }
details code { display: block; padding: 8px 12px; }
footer { color: var(--muted); font-size: 13px; margin-top: 64px; }
INKS
@media (max-width: 640px) { main { padding: 24px 16px 60px; } h1 { font-size: 24px; } }
@media print { main { max-width: none; padding: 0; } nav { display: none; }
  h2 { break-after: avoid; } figure, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def page(found: Document, kind: str) -> str:
    """Return the report.

    Args:
        found: What it says.
        kind: "ablation" or "search".
    """
    style = (
        _STYLE.replace("LIGHT", svg.variables(svg.LIGHT))
        .replace("DARK", svg.variables(svg.DARK))
        .replace("FONT", svg.FONT)
        .replace("INKS", svg.inks())
        .strip()
    )
    facts = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in found.facts
    )
    warnings = "\n".join(f"<li>⚠ {_text(warning)}</li>" for warning in found.warnings)
    links = "\n".join(
        f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>'
        for section in found.sections
    )
    body = "\n".join(_section(section) for section in found.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="spanet report">
<title>{escape(found.name)}: {escape(found.question)}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<header>
<p class="kind">{escape(kind)} · {escape(found.name)}</p>
<h1>{_text(found.question)}</h1>
<div class="verdict {found.tone}"><p>{_text(found.verdict)}</p></div>
<dl class="facts">
{facts}
</dl>
{f'<ul class="warnings">{warnings}</ul>' if warnings else ""}
<nav aria-label="Sections">
{links}
</nav>
</header>
{body}
<footer>Written by <code>spanet report {escape(found.name)}</code>. The same trials give the same
page, byte for byte.</footer>
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    anchor = _anchor(section.title)
    blocks = "\n".join(_block(block) for block in section.blocks)
    return (
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{escape(section.title)}</h2>\n'
        f"{blocks}\n</section>"
    )


def _block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Bullets):
        items = "\n".join(f"<li>{_text(item)}</li>" for item in block.items)
        return f"<ul>\n{items}\n</ul>"
    if isinstance(block, Commands):
        items = "\n".join(
            f"<dt>{_text(name)}</dt><dd><code>{escape(command)}</code></dd>"
            for name, command in block.items
        )
        return (
            f"<details>\n<summary>{_text(block.title)}</summary>\n<dl>\n{items}\n</dl>\n</details>"
        )
    if isinstance(block, Scene):
        return (
            f'<figure>\n<div class="scroll">\n{svg.inline(block)}\n</div>\n'
            f"<figcaption>{_text(block.caption)}</figcaption>\n</figure>"
        )
    if isinstance(block, Picture):
        content = base64.b64encode(block.png).decode()
        return (
            f'<figure>\n<img src="data:image/png;base64,{content}" '
            f'alt="{escape(block.alt, quote=True)}">\n'
            f"<figcaption>{_text(block.caption)}</figcaption>\n</figure>"
        )
    return _table(block)


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{_aligned(column.numeric)}>{_text(column.title)}</th>'
        for column in table.columns
    )
    strong = ' class="strong"'
    rows = "\n".join(
        f"<tr{strong if i in table.strong else ''}>{_row(row, table)}</tr>"
        for i, row in enumerate(table.rows)
    )
    notes = "".join(f'\n<p class="note">{_text(note)}</p>' for note in table.notes)
    label = escape(table.caption, quote=True)
    # A table that is wider than a narrow screen is scrolled, by the keyboard as well.
    return (
        f'<div class="wide" role="region" aria-label="{label}" tabindex="0">\n'
        f"<table>\n<caption>{_text(table.caption)}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>{notes}"
    )


def _row(row: tuple[Cell, ...], table: Table) -> str:
    cells = []
    for i, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
        names = " ".join(name for name in ("n" if column.numeric else "", cell.tone) if name)
        look = f' class="{names}"' if names else ""
        text = _text(cell.text)
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{look}>{text}</{tag}>")
    return "".join(cells)


def _aligned(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower())


def _text(text: str) -> str:
    """Escape a text, and mark what stands between backticks and pairs of asterisks."""
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:  # a single backtick is one
        return "`".join(parts)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"<code>{part}</code>"
        else:
            parts[i] = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
    return "".join(parts)
