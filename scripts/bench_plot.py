"""The benchmark's plot, written as SVG by hand: it reads well on a light and on a dark page."""

from __future__ import annotations

import statistics
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench_report import Recording

_COLOURS: Final = ("#2f7ed8", "#e08a1e", "#c9b03c", "#4a9d5b", "#b5505a", "#8a6bbd", "#7f8c8d")
_WIDTH: Final = 820
_LEFT: Final = 170
_RIGHT: Final = 70
_BAR: Final = 13
_GAP: Final = 14
_LINE: Final = 20
_STYLE: Final = """\
text { font: 12px system-ui, sans-serif; fill: #24292f; }
.head { font-size: 15px; font-weight: 600; }
.value { font-size: 11px; }
.spread { stroke: #24292f; stroke-width: 1; }
.axis { stroke: #8c959f; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .spread { stroke: #e6edf3; }
}"""


def svg(recording: Recording) -> str:
    """Bars of tokens per second: a group for each workload, a bar for each competitor."""
    colours = dict(zip(recording.competitors, _COLOURS * 2, strict=False))
    groups = []
    most = 1.0
    for measure, at_once in recording.measures():
        bars = []
        for name in recording.competitors:
            found = recording.series(name, measure, "tokens_per_s", at_once).values()
            if found:
                bars.append((name, min(found), statistics.median(found), max(found)))
                most = max(most, *found)
        groups.append((measure if at_once == 1 else f"{measure}, {at_once} at once", bars))
    legend_rows = -(-len(colours) // 3)
    y = 34.0 + legend_rows * _LINE
    body = ['<text x="12" y="22" class="head">Tokens per second, whole workloads</text>']
    body += _legend(colours)
    per_token = (_WIDTH - _LEFT - _RIGHT) / most
    top = y
    for title, bars in groups:
        y += _GAP
        middle = y + len(bars) * _BAR / 2 + 4
        x = _LEFT - 10
        body.append(f'<text x="{x}" y="{middle:.1f}" text-anchor="end">{escape(title)}</text>')
        for name, *spread in bars:
            body += _bar(y, colours[name], name, spread, per_token)
            y += _BAR
    y += _GAP
    body.append(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{top:.1f}" y2="{y:.1f}"/>')
    box = f'viewBox="0 0 {_WIDTH} {y + 6:.0f}"'
    told = 'role="img" aria-label="Tokens per second of each workload and competitor"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} {told}>'
    return "\n".join([head, f"<style>{_STYLE}</style>", *body, "</svg>\n"])


def _legend(colours: dict[str, str]) -> list[str]:
    made = []
    for number, (name, colour) in enumerate(colours.items()):
        x, y = 12 + (number % 3) * 265, 34 + (number // 3) * _LINE
        made.append(f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>')
        made.append(f'<text x="{x + 18}" y="{y + 10}">{escape(name)}</text>')
    return made


def _bar(y: float, colour: str, name: str, spread: Sequence[float], per_token: float) -> list[str]:
    low, middle, high = (_LEFT + each * per_token for each in spread)
    centre, value = y + (_BAR - 2) / 2, f"{spread[1]:.1f}"
    title = f"<title>{escape(name)}: {value} tok/s</title>"
    place = f'x="{_LEFT}" y="{y:.1f}" width="{middle - _LEFT:.1f}" height="{_BAR - 2}"'
    ends = f'x1="{low:.1f}" x2="{high:.1f}" y1="{centre:.1f}" y2="{centre:.1f}"'
    return [
        f'<rect {place} rx="2" fill="{colour}">{title}</rect>',
        f'<line class="spread" {ends}/>',
        f'<text class="value" x="{high + 6:.1f}" y="{centre + 4:.1f}">{value}</text>',
    ]
