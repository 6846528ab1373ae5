"""Where the nodes of a graph go: Graphviz's `dot` from left to right, folded into rows like text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .graph import ModelGraph

__all__ = ["GraphLayout", "Points", "lay_out"]

Points = npt.NDArray[np.float64]
_RANK_GAP, _NODE_GAP, _ROW_GAP, _TURN = 0.24, 0.1, 0.22, 0.1  # inches
_GHOST = 0.02
_FROM, _TO = "row above", "row below"  # invisible nodes where a row begins and ends


@dataclass(frozen=True)
class GraphLayout:
    """A drawing's geometry, in inches from the lower left.

    Attributes:
        size: of the whole.
        centres: of the nodes, by name.
        arrows: curves that end at a node: points of cubic Bezier curves, (1 + 3n, 2).
        tails: curves that end where a row does.
        links: polylines from the end of a row to the beginning of the next, (n, 2).
    """

    size: tuple[float, float]
    centres: Mapping[str, tuple[float, float]]
    arrows: tuple[Points, ...]
    tails: tuple[Points, ...]
    links: tuple[Points, ...]


def lay_out(graph: ModelGraph, sizes: Mapping[str, tuple[float, float]], width: float) -> GraphLayout:
    """Place the nodes.

    Args:
        graph: what to place.
        sizes: width and height of every node, inches.
        width: to keep to, where the graph has places to fold it: probed nodes on which alone all that
            follows depends.
    """
    segments = _segments(graph)
    widths = [_Row(graph, segment, sizes).step for segment in segments]
    room = width - 2 * (_RANK_GAP + _GHOST + _TURN)  # between the ends of a row
    rows = [_Row(graph, names, sizes) for names in _rows(segments, widths, room)]
    bottom = sum(row.size[1] for row in rows) + _ROW_GAP * (len(rows) - 1)
    size = max(row.size[0] for row in rows) + 2 * _TURN * (len(rows) > 1), bottom
    centres: dict[str, tuple[float, float]] = {}
    arrows: list[Points] = []
    tails: list[Points] = []
    links: list[Points] = []
    exit_point, right = None, 0.0
    for row in rows:
        bottom -= row.size[1]
        corner = np.array([_TURN * (len(rows) > 1), bottom])
        centres.update({name: (x + corner[0], y + corner[1]) for name, (x, y) in row.centres.items()})
        arrows += [points + corner for points in row.arrows]
        tails += [points + corner for points in row.tails]
        if exit_point is not None and row.entry is not None:
            links.append(_link(exit_point, right, bottom + row.size[1] + _ROW_GAP / 2, row.entry + corner))
        exit_point = None if row.exit is None else row.exit + corner
        right = corner[0] + row.size[0] + _TURN
        bottom -= _ROW_GAP
    return GraphLayout(size, centres, tuple(arrows), tuple(tails), tuple(links))


def _segments(graph: ModelGraph) -> list[list[str]]:
    """The nodes in execution order, cut wherever all edges to what follows come from one probed node.

    Of several such places for one node, the last: its dead ends stay with it.
    """
    order = [node.name for node in graph.nodes]
    position = {name: i for i, name in enumerate(order)}
    probed = {node.name for node in graph.nodes if node.probed}
    cuts: dict[str, int] = {}
    for i in range(1, len(order)):
        crossing = {source for source, target in graph.edges if position[source] < i <= position[target]}
        if len(crossing) == 1 and crossing <= probed:
            cuts[crossing.pop()] = i
    ends = [*cuts.values(), len(order)]
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rows(segments: list[list[str]], widths: list[float], limit: float) -> list[list[str]]:
    """The nodes by row: as few rows as fit, and these as equal as possible."""
    fewest = len(_filled(segments, widths, limit))
    widest = max(widths)
    candidates = np.linspace(widest, limit) if widest < limit else [limit]
    return next(rows for c in candidates if len(rows := _filled(segments, widths, float(c))) == fewest)


def _filled(segments: list[list[str]], widths: list[float], limit: float) -> list[list[str]]:
    rows: list[list[str]] = []
    room = 0.0
    for segment, width in zip(segments, widths, strict=True):
        if not rows or width > room:
            rows.append([])
            room = limit
        rows[-1] += segment
        room -= width
    return rows


def _link(start: Points, right: float, between: float, end: Points) -> Points:
    """Out to the right, back between the rows, and in from the left."""
    left = end[0] - _TURN
    corners = [start, (right, start[1]), (right, between), (left, between), (left, end[1]), end]
    return np.array(corners, np.float64)


class _Row:
    """Some of the nodes, placed by `dot`, with the ends of what comes from other rows and goes there."""

    def __init__(self, graph: ModelGraph, names: list[str], sizes: Mapping[str, tuple[float, float]]):
        import pygraphviz  # of the extra `graph`

        inside = set(names)
        edges: dict[tuple[str, str], None] = {}  # without repetition, in order
        for source, target in graph.edges:
            if source in inside or target in inside:
                ends = source if source in inside else _FROM, target if target in inside else _TO
                edges[ends] = None
        drawing = pygraphviz.AGraph(directed=True, rankdir="LR", ranksep=_RANK_GAP, nodesep=_NODE_GAP)
        drawing.node_attr.update(shape="box", fixedsize=True, label="")
        drawing.edge_attr.update(dir="none", tailport="e", headport="w")
        ghosts = [name for name in (_FROM, _TO) if any(name in edge for edge in edges)]
        # Not by their names: what stands behind a colon would be a port.
        keys = {name: str(i) for i, name in enumerate([*ghosts, *names])}
        for name, key in keys.items():
            width, height = sizes.get(name, (_GHOST, _GHOST))
            drawing.add_node(key, width=width, height=height)
        for source, target in edges:
            drawing.add_edge(keys[source], keys[target])
        drawing.layout("dot")
        box = [float(v) / 72 for v in drawing.graph_attr["bb"].split(",")]
        corner = np.array(box[:2])
        self.size = box[2] - box[0], box[3] - box[1]
        self.step = self.size[0] - len(ghosts) * (_GHOST + _RANK_GAP) + _RANK_GAP  # its share of a longer row
        places = {name: _points(drawing.get_node(keys[name]).attr["pos"])[0] - corner for name in names}
        self.centres = {name: (float(x), float(y)) for name, (x, y) in places.items()}
        curves = {e: _points(drawing.get_edge(*(keys[n] for n in e)).attr["pos"]) - corner for e in edges}
        self.arrows = [curve for (_, target), curve in curves.items() if target != _TO]
        self.tails = [curve for (_, target), curve in curves.items() if target == _TO]
        self.entry = next((curve[0] for (source, _), curve in curves.items() if source == _FROM), None)
        self.exit = self.tails[0][-1] if self.tails else None


def _points(text: str) -> Points:
    """`dot`'s points: pairs of 1/72 inch."""
    return np.array([pair.split(",") for pair in text.split()], np.float64) / 72
