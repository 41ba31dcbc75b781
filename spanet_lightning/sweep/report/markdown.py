"""A report as Markdown, with its figures in files beside it."""

from __future__ import annotations

from spanet_lightning.sweep.report.document import (
    Block,
    Bullets,
    Cell,
    Commands,
    Document,
    Picture,
    Table,
)
from spanet_lightning.sweep.report.scene import Scene


def markdown(found: Document, figures: str = "figures") -> str:
    """Return the report.

    Args:
        found: What it says.
        figures: Folder of the figures, seen from the report.
    """
    lines = [f"# {_text(found.question)}", "", _text(found.verdict), ""]
    lines.append(" · ".join(f"{name}: {_text(value)}" for name, value in found.facts))
    lines.append("")
    for warning in found.warnings:
        lines += [f"> ⚠ {_text(warning)}", ""]
    for section in found.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_block(block, figures), ""]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block, figures: str) -> list[str]:
    if isinstance(block, str):
        return [_text(block)]
    if isinstance(block, Bullets):
        return [f"- {_text(item)}" for item in block.items]
    if isinstance(block, Scene | Picture):
        alt = _text(block.alt).replace("[", "(").replace("]", ")")
        file = block.file if isinstance(block, Picture) else f"{figures}/{block.name}.svg"
        return [f"![{alt}]({file})", "", f"*{_text(block.caption)}*"]
    if isinstance(block, Commands):
        lines = ["<details>", f"<summary>{block.title}</summary>", "", "```"]
        for name, command in block.items:
            lines += [f"# {' '.join(name.split())}", command]
        return [*lines, "```", "", "</details>"]
    return _table(block)


def _table(table: Table) -> list[str]:
    titles = [_cell(Cell(column.title)) for column in table.columns]
    lines = [f"{table.caption}:", ""]
    lines.append(f"| {' | '.join(titles)} |")
    lines.append("|" + "|".join("---:" if c.numeric else "---" for c in table.columns) + "|")
    for i, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row]
        if i in table.strong:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    for note in table.notes:
        lines += ["", _text(note)]
    return lines


def _cell(cell: Cell) -> str:
    return _text(cell.text).replace("|", "\\|")


def _text(text: str) -> str:
    """Keep what a study says of itself from becoming markup; code between backticks is left."""
    parts = " ".join(text.split()).split("`")
    # A single backtick opens nothing.
    step = 2 if len(parts) % 2 else 1
    for i in range(0, len(parts), step):
        parts[i] = parts[i].replace("<", "&lt;").replace("_", "\\_").replace("](", "]\\(")
    return "`".join(parts)
