"""The marks of the picture: boxes, arrows and diodes. All lengths are inches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from .graph import GraphNode, ModelGraph
from .layout import GraphLayout, Points

__all__ = ["FULL", "SMALL", "Colour", "Style", "draw_edges", "draw_node", "node_sizes"]

Colour = tuple[float, float, float, float]
_LINE, _QUIET_FILL, _QUIET_TEXT = "#8C8C8C", "#F3F3F3", "#5F5F5F"
_SYMBOLS = {"add": "+", "sub": "−", "mul": "×"}
_LINE_HEIGHT = 1.25 / 72  # of one point of text
_CORNER = 0.06
_HEAD = "-|>,head_length=0.55,head_width=0.25"
_DIODE, _ERROR_TEXT = 0.2, 6.5  # height of the symbol; points


@dataclass(frozen=True)
class Style:
    """Sizes of the marks: points of text (0: none), widths of lines in points."""

    probed_text: float
    other_text: float
    probed: tuple[float, float]  # least width and height of a box
    other: tuple[float, float]
    line: float
    head: float


FULL = Style(7, 5.8, (0.5, 0.24), (0.16, 0.16), 0.8, 5)
SMALL = Style(0, 0, (0.2, 0.16), (0.08, 0.08), 0.6, 3)


def node_sizes(graph: ModelGraph, style: Style, diodes: bool = False) -> dict[str, tuple[float, float]]:
    """Width and height that every node needs, the space for its diode included."""
    sizes = {}
    for node in graph.nodes:
        width, height = _box(node, style)
        if diodes and node.probed:
            height += 2 * _DIODE  # as much above, so that arrows meet the box in its middle
        sizes[node.name] = width, height
    return sizes


def draw_edges(axes: Axes, layout: GraphLayout, style: Style) -> None:
    """Arrows, and the lines from row to row."""
    for points in layout.arrows:
        arrow = FancyArrowPatch(path=_bezier(points), arrowstyle=_HEAD, mutation_scale=style.head)
        arrow.set(color=_LINE, lw=style.line, capstyle="butt", joinstyle="miter")
        _add(axes, arrow)
    for curve in [*map(_bezier, layout.tails), *map(_rounded, layout.links)]:
        _add(axes, PathPatch(curve, fill=False, ec=_LINE, lw=style.line))


def draw_node(
    axes: Axes,
    node: GraphNode,
    centre: tuple[float, float],
    style: Style,
    fill: Colour | None,
    percent: float | None,
    diode: bool,
) -> None:
    """One box with its name, filled if there is a reading, and the probe that hangs on it."""
    (x, y), (width, height) = centre, _box(node, style)
    if node.probed and diode:
        _draw_diode(axes, x - width / 2 + 0.12, y - height / 2, percent)
    box = FancyBboxPatch((x - width / 2, y - height / 2), width, height)
    box.set_boxstyle("round", pad=0, rounding_size=min(_CORNER, height / 3))
    edge = "#333333" if node.probed else "#B5B5B5"
    box.set(ec=edge, lw=style.line, fc=fill or ("white" if node.probed else _QUIET_FILL), zorder=2)
    box.set_gid(node.name)
    if node.probed and fill is None:
        box.set_linestyle((0, (3, 2)))
    _add(axes, box)
    size = style.probed_text if node.probed else style.other_text
    if size:
        colour = _QUIET_TEXT if not node.probed else "white" if fill and _is_dark(fill) else "black"
        label = "\n".join(_label(node))
        text = axes.text(x, y, label, size=size, color=colour, ha="center", va="center_baseline", zorder=3)
        text.set(linespacing=1.05)


def _draw_diode(axes: Axes, x: float, top: float, percent: float | None) -> None:
    """The symbol of the papers: current, like information, flows to the probe and never back."""
    wide, start, tip, end = 0.05, top - 0.05, top - 0.13, top - _DIODE + 0.02
    _add(axes, PathPatch(Curve([(x, top), (x, end)]), ec="black", lw=0.8))
    _add(axes, Polygon([(x - wide, start), (x + wide, start), (x, tip)], fc="black", ec="none"))
    _add(axes, PathPatch(Curve([(x - wide, tip), (x + wide, tip)]), ec="black", lw=1))
    text = "no reading" if percent is None else f"{percent:.1f}%"
    axes.text(x + 0.08, top - 0.095, text, size=_ERROR_TEXT, ha="left", va="center")


def _box(node: GraphNode, style: Style) -> tuple[float, float]:
    size, (width, height) = (
        (style.probed_text, style.probed) if node.probed else (style.other_text, style.other)
    )
    if size:
        lines = _label(node)
        padding = 0.12 if node.probed else 0.08
        width = max(width, max(_text_width(line, size) for line in lines) + padding)
        height = max(height, len(lines) * size * _LINE_HEIGHT + padding / 1.5)
    return width, height


def _label(node: GraphNode) -> list[str]:
    """Of a probed node the name, broken at dots; of another the last part that is no mere number."""
    if node.probed:
        lines = [""]
        for part in re.findall(r"[^.:]+[.:]?", node.name):
            if len(lines[-1]) + len(part) > 12 and lines[-1]:
                lines.append("")
            lines[-1] += part
        return lines
    own = re.sub(r"^.*\.(?=[^\d.])", "", node.name)  # from the last part on that does not begin with a digit
    leaf = re.sub(r"_\d+[a-z]?$", "", own)  # as in `relu_1` or `branch3x3_2a`
    return [_SYMBOLS.get(leaf, leaf)]


@cache
def _text_width(text: str, size: float) -> float:
    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72


def _is_dark(colour: Colour) -> bool:
    red, green, blue, _ = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.2


def _add(axes: Axes, patch: Patch) -> None:
    patch.set_clip_on(False)  # half of a line on the border is outside
    axes.add_patch(patch)


def _bezier(points: Points) -> Curve:
    return Curve(points, [Curve.MOVETO] + [Curve.CURVE4] * (len(points) - 1))


def _rounded(points: Points) -> Curve:
    """A polyline with round corners."""
    vertices, codes = [points[0]], [Curve.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        into, out = corner - before, after - corner
        radius = min(_CORNER, np.linalg.norm(into) / 2, np.linalg.norm(out) / 2)
        enter = corner - radius * into / (np.linalg.norm(into) or 1)
        leave = corner + radius * out / (np.linalg.norm(out) or 1)
        vertices += [enter, corner, leave]
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
    return Curve([*vertices, points[-1]], [*codes, Curve.LINETO])
