"""Bars as SVG, without a library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LABELS, NUMBERS = 900, 330, 60  # of the picture, of its left column, of the room right of the longest bar
HEAD, BAR, GAP = 34, 16, 4
STYLE = (
    "text { font: 12px sans-serif; fill: #222 } .title { font-size: 14px; font-weight: bold }"
    " .ours { fill: #1a7f5a } .other { fill: #9aa5b1 } .label { text-anchor: end } .back { fill: #fff }"
)


class Bar(NamedTuple):
    """A label, a length, and whether it is ours."""

    label: str
    value: float
    ours: bool


class Panel(NamedTuple):
    """Bars with a title and a scale of their own."""

    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        """In pixels."""
        return HEAD + len(self.bars) * (BAR + GAP)


def svg(panels: Sequence[Panel]) -> str:
    """A picture of all panels, one below the other."""
    height = sum(panel.height for panel in panels) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
    ]
    top = 0
    for panel in panels:
        lines += _panel(panel, top)
        top += panel.height
    return "\n".join([*lines, "</svg>\n"])


def _panel(panel: Panel, top: int) -> Iterator[str]:
    yield f'<text class="title" x="8" y="{top + 22}">{escape(panel.title)}</text>'
    scale = (WIDTH - LABELS - NUMBERS) / max(bar.value for bar in panel.bars)
    for number, bar in enumerate(panel.bars):
        y, length = top + HEAD + number * (BAR + GAP), bar.value * scale
        kind = "ours" if bar.ours else "other"
        yield f'<text class="label" x="{LABELS - 8}" y="{y + 12}">{escape(bar.label)}</text>'
        yield f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}"/>'
        yield f'<text x="{LABELS + length + 6:.1f}" y="{y + 12}">{bar.value:.0f}</text>'
