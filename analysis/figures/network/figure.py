"""The picture: a model's graph with every probed node coloured by its prediction error."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from probes import ProbeResult, Reading
from thermoscope.errors import AnalysisError
from thermoscope.files import write_atomically

from ..style import BLUE, ORANGE, canvas
from .drawing import FULL, SMALL, Style, draw_edges, draw_node, node_sizes
from .graph import ModelGraph
from .layout import GraphLayout, lay_out

__all__ = ["Palette", "graph_figure", "graph_over_training", "save_graph_figure"]

Palette: TypeAlias = Literal["red-green", "colour-blind"]
_COLOURS = {  # from the lowest error to the highest
    "red-green": ("#1A7F4B", "#66BD63", "#D9EF8B", "#FEE08B", "#F46D43", "#B2182B"),
    "colour-blind": (BLUE, "#8CC0E0", "#F4F1EA", "#F2B27F", ORANGE),
}
_WIDTH = 7.4  # inches of a whole figure: the text of a page
_MARGIN, _TITLE, _LEGEND = 0.1, 0.3, 0.55


def graph_figure(
    graph: ModelGraph,
    result: ProbeResult | None = None,
    *,
    target: str | None = None,
    palette: Palette = "red-green",
    diodes: bool = False,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw the graph from left to right, folded into rows, with the probed nodes coloured by error.

    Args:
        graph: from `model_graph`, probed where the result is.
        result: what the probes say; without one, only the structure is drawn.
        target: which label set; the first one if not given.
        palette: red for high errors and green for low ones, or orange and blue.
        diodes: hang a diode on every probed node, with its error: what it reads never flows back.
        title: above the picture.
        limits: lowest and highest error of the colours, as fractions; those of the result if not given.

    A probed node without a reading is white with a dashed outline, what is not probed grey.

    Raises:
        AnalysisError: if the result has a layer that is no probed node.
    """
    readings = {} if result is None else _readings(graph, result, target)
    layout = lay_out(graph, node_sizes(graph, FULL, diodes), _WIDTH - 2 * _MARGIN)
    legend = _LEGEND if readings else 0
    width = max(layout.size[0] + 2 * _MARGIN, 3.2)
    figure = _blank(width, layout.size[1] + 2 * _MARGIN + legend + (_TITLE if title else 0))
    axes = _panel(figure, (width - layout.size[0]) / 2, _MARGIN + legend, layout)
    colours = _colours(palette, limits, [readings])
    _draw(axes, graph, layout, FULL, readings, colours, diodes)
    if title:
        axes.set_title(title, fontsize=10, pad=6)
    if readings:
        _legend(figure, colours)
    return figure


def graph_over_training(
    graph: ModelGraph,
    results: Mapping[str, ProbeResult],
    *,
    target: str | None = None,
    palette: Palette = "red-green",
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw the graph once per moment of the training, side by side in the same colours, without names.

    Args:
        graph: from `model_graph`, probed where the results are.
        results: by the text above the picture, such as `{"step 0": start, "step 5,000": later}`.
        target: which label set; the first one if not given.
        palette: red for high errors and green for low ones, or orange and blue.
        title: above all.
        limits: lowest and highest error of the colours, as fractions; those of the results if not given.

    Raises:
        AnalysisError: if there is no result, or a result has a layer that is no probed node.
    """
    if not results:
        raise AnalysisError("there is no result to draw; pass at least one moment of the training.")
    readings = {moment: _readings(graph, result, target) for moment, result in results.items()}
    columns, layout = _small_layout(graph, len(results))
    rows = -(-len(results) // columns)
    wide, high = layout.size[0] + 3 * _MARGIN, layout.size[1] + 0.4
    width = max(wide * columns + _MARGIN, 3.2)
    figure = _blank(width, high * rows + _LEGEND + (0.2 if title else 0))
    colours = _colours(palette, limits, list(readings.values()))
    for i, (moment, of_moment) in enumerate(readings.items()):
        left = (width - wide * columns + 3 * _MARGIN) / 2 + i % columns * wide
        axes = _panel(figure, left, _LEGEND + _MARGIN + (rows - 1 - i // columns) * high, layout)
        _draw(axes, graph, layout, SMALL, of_moment, colours)
        axes.set_title(moment, fontsize=8, pad=4)
    if title:
        figure.text(0.5, 1 - 0.08 / figure.get_figheight(), title, ha="center", va="top", fontsize=10)
    _legend(figure, colours)
    return figure


def _small_layout(graph: ModelGraph, count: int) -> tuple[int, GraphLayout]:
    """The number of pictures side by side with which all of them take the least height."""
    sizes = node_sizes(graph, SMALL)
    layouts = {1: lay_out(graph, sizes, _WIDTH)}
    for columns in range(2, count + 1):
        layout = lay_out(graph, sizes, _WIDTH / columns - 3 * _MARGIN)
        if count % columns == 0 and columns * layout.size[0] < _WIDTH:
            layouts[columns] = layout
    return min(layouts.items(), key=lambda item: (item[1].size[1] + 0.4) / item[0])


def save_graph_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as the name's ending says, such as .svg or .png; the same figure, the same bytes.

    Raises:
        AnalysisError: for an unknown ending, or if the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise AnalysisError(f"cannot write {str(path)!r}: end its name in .svg or .png.")
    buffer = io.BytesIO()
    undated = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "thermoscope"}):
        figure.savefig(buffer, format=kind, dpi=200, metadata=undated)
    write_atomically(path, buffer.getbuffer(), AnalysisError)
    return path


_Colours: TypeAlias = tuple[Normalize, Colormap]


def _readings(graph: ModelGraph, result: ProbeResult, target: str | None) -> dict[str, Reading]:
    if not result.readings:
        raise AnalysisError(f"the result of {result.split!r} has no readings; evaluate the probes first.")
    readings = {r.layer: r for r in result.of(target or result.readings[0].target).readings}
    probed = {node.name for node in graph.nodes if node.probed}
    unknown = [layer for layer in readings if layer not in probed]
    if unknown:
        raise AnalysisError(
            f"layer {unknown[0]!r} of the result is no probed node of the graph; "
            "pass all layers of the result to model_graph as `probed`."
        )
    return readings


def _colours(
    palette: Palette, limits: tuple[float, float] | None, results: list[dict[str, Reading]]
) -> _Colours:
    if palette not in _COLOURS:
        raise AnalysisError(f"there is no palette {palette!r}; choose one of {', '.join(_COLOURS)}.")
    errors = [reading.error for readings in results for reading in readings.values()] or [0.0]
    low, high = limits or (min(errors), max(errors))
    if low == high:
        low, high = low - 0.005, high + 0.005
    return Normalize(100 * low, 100 * high), LinearSegmentedColormap.from_list(palette, _COLOURS[palette])


def _draw(
    axes: Axes,
    graph: ModelGraph,
    layout: GraphLayout,
    style: Style,
    readings: Mapping[str, Reading],
    colours: _Colours,
    diodes: bool = False,
) -> None:
    draw_edges(axes, layout, style)
    norm, colour_map = colours
    for node in graph.nodes:
        reading = readings.get(node.name)
        percent = None if reading is None else 100 * reading.error
        fill = None if percent is None else colour_map(norm(np.clip(percent, norm.vmin, norm.vmax)))
        draw_node(axes, node, layout.centres[node.name], style, fill, percent, diodes)


def _blank(width: float, height: float) -> Figure:
    figure, (axes,) = canvas(width, height)
    figure.set_layout_engine("none")
    axes.remove()
    return figure


def _panel(figure: Figure, left: float, bottom: float, layout: GraphLayout) -> Axes:
    """Axes in inches at this place of the figure."""
    (width, height), (w, h) = figure.get_size_inches(), layout.size
    axes = figure.add_axes((left / width, bottom / height, w / width, h / height))
    axes.set(xlim=(0, w), ylim=(0, h))
    axes.set_axis_off()
    return axes


def _legend(figure: Figure, colours: _Colours) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.5 - 1.2 / width, 0.4 / height, 2.4 / width, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(*colours), cax=axes, orientation="horizontal")
    bar.ax.xaxis.set_major_formatter("{x:g}%")
    bar.ax.tick_params(labelsize=7, length=2, pad=1)
    bar.ax.locator_params(nbins=5)
    bar.set_label("prediction error of the probe", fontsize=7.5, labelpad=1)
    bar.outline.set_linewidth(0.5)
