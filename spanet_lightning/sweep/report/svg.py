"""Scenes as SVG: inline in a page, whose style gives the colours, or as a file of its own."""

from __future__ import annotations

from html import escape

from spanet_lightning.sweep.report.scene import Box, Dot, Ink, Line, Mark, Scene, Text

LIGHT: dict[Ink, str] = {
    "text": "#1d2430",
    "muted": "#5f6b7a",
    "grid": "#e4e8ee",
    "band": "#eef2f7",
    "main": "#2f6fb5",
    "control": "#5f6b7a",
    "better": "#0d7a5f",
    "worse": "#b8460e",
    "paper": "#ffffff",
}
DARK: dict[Ink, str] = {
    "text": "#e6eaf0",
    "muted": "#9aa6b6",
    "grid": "#2b3340",
    "band": "#1f2631",
    "main": "#7fb4f0",
    "control": "#a3afbf",
    "better": "#4fc9a4",
    "worse": "#f59a64",
    "paper": "#14181f",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


def inks() -> str:
    """Return the style by which marks get the colours of the page around them."""
    lines = [".figure text { font-family: inherit; }"]
    for ink in LIGHT:
        lines.append(f".figure .f-{ink} {{ fill: var(--{ink}); }}")
        lines.append(f".figure .s-{ink} {{ stroke: var(--{ink}); }}")
    return "\n".join(lines)


def variables(colours: dict[Ink, str]) -> str:
    """Return colours as declarations of CSS."""
    return " ".join(f"--{ink}: {colour};" for ink, colour in colours.items())


def inline(scene: Scene) -> str:
    """Return a scene for a page that has `inks` in its style."""
    return _svg(scene, "")


def standalone(scene: Scene) -> str:
    """Return a scene as a file, light or dark as its reader prefers."""
    style = (
        f"<style>svg {{ {variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {variables(DARK)} }} }}\n"
        f"text {{ font-family: {FONT}; }}\n{inks()}</style>\n"
        f'<rect width="{_n(scene.width)}" height="{_n(scene.height)}" '
        'style="fill: var(--paper)"/>\n'
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{_svg(scene, style)}\n'


def _svg(scene: Scene, head: str) -> str:
    size = f"{_n(scene.width)} {_n(scene.height)}"
    ids = f"{scene.name}-title {scene.name}-alt"
    body = "\n".join(_mark(mark) for mark in scene.marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="figure" viewBox="0 0 {size}" '
        f'width="{_n(scene.width)}" height="{_n(scene.height)}" role="img" '
        f'aria-labelledby="{ids}">\n'
        f'<title id="{scene.name}-title">{escape(scene.title)}</title>\n'
        f'<desc id="{scene.name}-alt">{escape(scene.alt)}</desc>\n{head}{body}\n</svg>'
    )


def _mark(mark: Mark) -> str:
    if isinstance(mark, Text):
        turn = f' transform="rotate(-90 {_n(mark.x)} {_n(mark.y)})"' if mark.turned else ""
        anchor = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
        bold = ' font-weight="600"' if mark.bold else ""
        return (
            f'<text class="f-{mark.ink}" x="{_n(mark.x)}" y="{_n(mark.y)}" '
            f'font-size="{_n(mark.size)}"{anchor}{bold}{turn}>{escape(mark.text)}</text>'
        )
    opacity = "" if mark.opacity == 1 else f' opacity="{_n(mark.opacity)}"'
    if isinstance(mark, Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark.points)
        dash = f' stroke-dasharray="{" ".join(map(_n, mark.dash))}"' if mark.dash else ""
        start = (
            f'<polyline class="s-{mark.ink}" points="{points}" fill="none" '
            f'stroke-width="{_n(mark.width)}" stroke-linejoin="round"{dash}{opacity}'
        )
        return _titled(start, mark.title, "polyline")
    if isinstance(mark, Box):
        start = (
            f'<rect class="f-{mark.ink}" x="{_n(mark.x)}" y="{_n(mark.y)}" '
            f'width="{_n(mark.width)}" height="{_n(mark.height)}"{opacity}'
        )
        return _titled(start, mark.title, "rect")
    return _dot(mark, opacity)


def _dot(mark: Dot, opacity: str) -> str:
    x, y, r = mark.x, mark.y, mark.radius
    if mark.shape == "cross":
        lines = f"M{_n(x - r)} {_n(y - r)}L{_n(x + r)} {_n(y + r)}"
        lines += f"M{_n(x - r)} {_n(y + r)}L{_n(x + r)} {_n(y - r)}"
        start = f'<path class="s-{mark.ink}" d="{lines}" fill="none" stroke-width="1.5"{opacity}'
        return _titled(start, mark.title, "path")
    look = f'class="f-{mark.ink}"'
    if mark.hollow:
        look = f'class="s-{mark.ink}" fill="none" stroke-width="1.5"'
    if mark.shape == "diamond":
        corners = f"{_n(x)},{_n(y - r)} {_n(x + r)},{_n(y)} {_n(x)},{_n(y + r)} {_n(x - r)},{_n(y)}"
        return _titled(f'<polygon {look} points="{corners}"{opacity}', mark.title, "polygon")
    start = f'<circle {look} cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"{opacity}'
    return _titled(start, mark.title, "circle")


def _titled(start: str, title: str, tag: str) -> str:
    return f"{start}><title>{escape(title)}</title></{tag}>" if title else f"{start}/>"


def _n(value: float) -> str:
    """Write a coordinate: a hundredth of a pixel is more than one sees."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
