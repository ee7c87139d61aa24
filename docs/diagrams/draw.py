"""
Draws the diagrams of the documentation: `hatch run docs:generate` turns each `*.toml` here into an SVG.

There are two kinds. A timeline has lanes with bars, and moments that cross all lanes. A graph has boxes and arrows.
A picture is as wide as the screen of a phone, so that one picture serves every screen. Its colours follow the colour
scheme of the page that shows it.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

SOURCES = Path(__file__).parent
IMAGES = SOURCES.parent / "content" / "images"

WIDTH = 480
MARGIN = 10
# The height of a lane: the name of the lane is above its bars.
LANE = 48
BAR_TOP, BAR_HEIGHT = 20, 24
# Pixels that one character takes, at the font sizes of the style sheet.
CHARACTER = 6.9

STYLE = """
.diagram { --ink: #1f2430; --faint: #5b6472; --line: #d5d9e0; --paper: #ffffff; --work: #dfe4ec; --now: #cfe3ff;
  --route: #d6f0d8; --response: #ffe3bf; --end: #e9ddfb; --cut: #c62828; font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) {
.diagram { --ink: #e6e8ec; --faint: #9aa3b2; --line: #353b46; --paper: #14161b; --work: #303744; --now: #1d4374;
  --route: #24522b; --response: #6a4312; --end: #47336b; --cut: #ff8a80; }
}
.diagram text { fill: var(--ink); }
.diagram .lane, .diagram .faint { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.diagram .faint { fill: var(--faint); font-size: 12px; }
.diagram .name, .diagram .lane { font-weight: 600; }
.diagram .line { stroke: var(--line); fill: none; }
.diagram .arrow { stroke: var(--faint); fill: none; stroke-width: 1.3; }
.diagram .head { fill: var(--faint); }
.diagram .moment { stroke: var(--faint); stroke-dasharray: 3 3; }
.diagram .cut { stroke: var(--cut); stroke-width: 2; }
.diagram .paper { fill: var(--paper); }
.diagram .work { fill: var(--work); } .diagram .now { fill: var(--now); } .diagram .route { fill: var(--route); }
.diagram .response { fill: var(--response); } .diagram .end { fill: var(--end); }
""".strip()


def main() -> None:
    for source in sorted(SOURCES.glob("*.toml")):
        (IMAGES / f"{source.stem}.svg").write_text(draw(source), encoding="utf-8")


def draw(source: Path) -> str:
    """Return the SVG for a source file."""
    diagram = tomllib.loads(source.read_text(encoding="utf-8"))
    body, height = KINDS[diagram["kind"]](diagram)
    lines = [
        f'<svg class="diagram" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-labelledby="{source.stem}-title {source.stem}-text">',
        f'<title id="{source.stem}-title">{escape(diagram["title"])}</title>',
        f'<desc id="{source.stem}-text">{escape(diagram["text"])}</desc>',
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# ---- timelines ----


def timeline(diagram: dict[str, Any]) -> tuple[list[str], int]:
    labels = [wrap(moment["label"], 13, break_long_words=False) for moment in diagram.get("moment", [])]
    top = 14 * max((len(label) for label in labels), default=0) + 14
    lanes = diagram["lane"]
    bottom = top + LANE * len(lanes)
    body = []
    for number in range(len(lanes)):
        y = top + LANE * number
        body.append(f'<path class="line" d="M0 {y}H{WIDTH}"/>')
    for moment, label in zip(diagram.get("moment", []), labels, strict=True):
        body += _moment(moment, label, top, bottom)
    for number, lane in enumerate(lanes):
        body += _lane(lane, top + LANE * number)
    return body, bottom + 6


def _x(at: float) -> float:
    return round(MARGIN + at / 100 * (WIDTH - 2 * MARGIN), 1)


def _moment(moment: dict[str, Any], label: list[str], top: int, bottom: int) -> list[str]:
    x = _x(moment["at"])
    first = top - 8 - 14 * (len(label) - 1)
    half = max(map(len, label)) * CHARACTER / 2
    place, anchor = 0.0, "middle"
    if x < half:
        place, anchor = 4 - x, "start"
    elif x + half > WIDTH:
        place, anchor = WIDTH - 4 - x, "end"
    texts = [text(x + place, first + 14 * number, line, "faint", anchor) for number, line in enumerate(label)]
    return [*texts, f'<path class="moment" d="M{x} {top}V{bottom}"/>']


def _lane(lane: dict[str, Any], y: float) -> list[str]:
    body = [text(MARGIN, y + 15, lane["name"], "lane", "start")]
    for bar in lane.get("bar", []):
        begin, end = _x(bar["from"]), _x(bar["to"])
        label = bar.get("label", "")
        baseline = y + BAR_TOP + BAR_HEIGHT / 2 + 4.5
        body.append(
            f'<rect class="{bar.get("kind", "work")}" x="{begin}" y="{y + BAR_TOP}" width="{round(end - begin, 1)}" '
            f'height="{BAR_HEIGHT}" rx="4"/>'
        )
        if bar.get("cut"):
            body.append(f'<path class="cut" d="M{end - 5} {y + BAR_TOP + 7}l10 10m0 -10l-10 10"/>')
        if len(label) * CHARACTER < end - begin - 6:
            body.append(text(begin + 7, baseline, label, "", "start"))
        elif end + len(label) * CHARACTER + 10 < WIDTH:
            body.append(text(end + 9, baseline, label, "", "start"))
        else:
            body.append(text(begin - 7, baseline, label, "", "end"))
    return body


# ---- graphs ----

COLUMN, ROW = 123, 92
BOX_WIDTH, BOX_HEIGHT = 96, 36


def graph(diagram: dict[str, Any]) -> tuple[list[str], int]:
    boxes = {box["name"]: box for box in diagram["box"]}
    body = []
    for arrow in diagram["arrow"]:
        body += _arrow(arrow)
    for box in boxes.values():
        x, y = _place(box["at"])
        body.append(
            f'<rect class="{box.get("kind", "work")}" x="{x - BOX_WIDTH / 2}" y="{y - BOX_HEIGHT / 2}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>'
        )
        body.append(text(x, y + 4, box["name"], "name", "middle"))
    return body, max(round(_place(box["at"])[1]) for box in boxes.values()) + BOX_HEIGHT


def _place(at: list[float]) -> tuple[float, float]:
    column, row = at
    return 56 + column * COLUMN, 30 + row * ROW


def _arrow(arrow: dict[str, Any]) -> list[str]:
    points = [_place(point) for point in arrow["path"]]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    body = [f'<path class="arrow" d="{path}"/>', _head(points[-2], points[-1])]
    if "label" in arrow:
        x, y = _place(arrow["at"])
        body += [text(x, y + 14 * n, line, "faint", "middle") for n, line in enumerate(arrow["label"].split("\n"))]
    return body


def _head(before: tuple[float, float], tip: tuple[float, float]) -> str:
    dx, dy = tip[0] - before[0], tip[1] - before[1]
    length = (dx * dx + dy * dy) ** 0.5
    dx, dy = dx / length, dy / length
    back = (tip[0] - 8 * dx, tip[1] - 8 * dy)
    sides = [(back[0] - 4 * dy, back[1] + 4 * dx), (back[0] + 4 * dy, back[1] - 4 * dx)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in [tip, *sides])
    return f'<polygon class="head" points="{corners}"/>'


def text(x: float, y: float, content: str, style: str, anchor: str) -> str:
    """Return one line of text."""
    name = f' class="{style}"' if style else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text{name} x="{x:g}" y="{y:g}"{place}>{escape(content)}</text>'


KINDS = {"timeline": timeline, "graph": graph}

if __name__ == "__main__":
    main()
