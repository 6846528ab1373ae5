"""The picture shows every probe where it is, in the colour of its error."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon

from analysis import (
    AnalysisError,
    GraphNode,
    ModelGraph,
    graph_figure,
    graph_over_training,
    model_graph,
    save_graph_figure,
)
from analysis.figures.network.drawing import FULL, SMALL, node_sizes
from analysis.figures.network.layout import lay_out
from probes import ProbeResult
from probes.features.auto import automatic_layers

from .test_runs import READING


def chain(count: int) -> ModelGraph:
    """Probed nodes `layer.0`, ... with a branch around every second one."""
    names = [f"layer.{i}" for i in range(count)]
    nodes = [GraphNode(name, "Linear", True, (name,)) for name in names]
    skips = [(names[i], names[i + 2]) for i in range(0, count - 2, 2)]
    return ModelGraph(tuple(nodes), (*pairwise(names), *skips))


def result(graph: ModelGraph, shift: float = 0.0) -> ProbeResult:
    probed = [node.name for node in graph.nodes if node.probed]
    errors = np.linspace(0.9, 0.1 + shift, len(probed))
    readings = [replace(READING, layer=n, error=float(e)) for n, e in zip(probed, errors, strict=True)]
    return ProbeResult("valid", tuple(readings), ())


@pytest.fixture(scope="module")
def resnet() -> ModelGraph:
    model = torchvision.models.resnet18().eval()
    return model_graph(model, lambda m: m(torch.randn(1, 3, 32, 32)), automatic_layers(model))


def boxes(figure: Figure, axes: int = 0) -> dict[str, FancyBboxPatch]:
    found = [p for p in figure.axes[axes].patches if isinstance(p, FancyBboxPatch)]
    return {str(box.get_gid()): box for box in found}


def texts(figure: Figure) -> list[str]:
    return [text.get_text().replace("\n", "") for text in figure.axes[0].texts]


@pytest.mark.parametrize("palette", ["red-green", "colour-blind"])
def test_colours_are_those_of_the_legend(resnet: ModelGraph, palette: Any) -> None:
    shown = result(resnet)
    figure = graph_figure(resnet, shown, palette=palette)
    legend: Any = figure.axes[1].collections[-1]
    for reading in shown.readings:
        colour = legend.cmap(legend.norm(100 * reading.error))
        assert np.allclose(boxes(figure)[reading.layer].get_facecolor(), colour)
    assert legend.get_clim() == pytest.approx((10, 90))
    assert set(texts(figure)) >= {reading.layer for reading in shown.readings}
    unprobed = [node.name for node in resnet.nodes if not node.probed]
    greys = np.array([boxes(figure)[name].get_facecolor()[:3] for name in unprobed])
    assert np.ptp(greys, axis=1).max() == 0


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Mixed_7b.branch3x3_2a", "branch3x3"),
        ("layer1.0.add_1", "+"),
        ("features.1.0", "features.1.0"),
        ("layer1.0.conv2", "conv2"),
        ("mul", "×"),
    ],
)
def test_what_is_not_probed_has_a_short_name(name: str, label: str) -> None:
    figure = graph_figure(ModelGraph((GraphNode(name, "", False, (name,)),), ()))
    assert texts(figure) == [label]


def luminance(colour: Any) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("palette", ["red-green", "colour-blind"])
def test_names_stand_out_from_their_colour(palette: Any) -> None:
    graph = chain(40)
    figure = graph_figure(graph, result(graph), palette=palette)
    for text, box in zip(figure.axes[0].texts, boxes(figure).values(), strict=True):
        lights = sorted([luminance(box.get_facecolor()), 1.0 if text.get_color() == "white" else 0.0])
        assert (lights[1] + 0.05) / (lights[0] + 0.05) > 4


def test_limits_are_shared_and_hold_what_exceeds_them() -> None:
    graph = chain(4)
    figure = graph_figure(graph, result(graph), limits=(0.2, 0.5))
    legend: Any = figure.axes[1].collections[-1]
    assert legend.get_clim() == pytest.approx((20, 50))
    assert np.allclose(boxes(figure)["layer.0"].get_facecolor(), legend.cmap(1.0))
    assert np.allclose(boxes(figure)["layer.3"].get_facecolor(), legend.cmap(0.0))


def test_diodes_carry_the_errors() -> None:
    graph = chain(4)
    shown = result(graph)
    missing = replace(shown, readings=shown.readings[:-1])
    figure = graph_figure(graph, missing, diodes=True)
    triangles = [p for p in figure.axes[0].patches if type(p) is Polygon]
    assert len(triangles) == 4
    assert [t for t in texts(figure) if not t.startswith("layer")] == [
        "90.0%",
        "63.3%",
        "36.7%",
        "no reading",
    ]
    assert boxes(figure)["layer.3"].get_linestyle() != boxes(figure)["layer.0"].get_linestyle()


def test_structure_without_a_result(resnet: ModelGraph) -> None:
    figure = graph_figure(resnet, title="ResNet-18")
    assert len(figure.axes) == 1
    assert figure.axes[0].get_title() == "ResNet-18"


def test_moments_share_one_layout_and_one_scale(resnet: ModelGraph) -> None:
    moments = {f"step {i}": result(resnet, 0.2 * i) for i in range(4)}
    figure = graph_over_training(resnet, moments)
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == list(moments)
    places = [[box.get_extents().bounds for box in boxes(figure, i).values()] for i in range(4)]
    sizes = np.array(places)[:, :, 2:]
    assert np.allclose(sizes, sizes[0])
    legend: Any = bar.collections[-1]
    assert legend.get_clim() == pytest.approx((10, 90))
    for i, moment in enumerate(moments.values()):
        last = moment.readings[-1]
        expected = legend.cmap(legend.norm(100 * last.error))
        assert np.allclose(boxes(figure, i)[last.layer].get_facecolor(), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 60])
@pytest.mark.parametrize("diodes", [False, True])
def test_nothing_overlaps_or_is_cut(count: int, diodes: bool) -> None:
    graph = chain(count)
    figure = graph_figure(graph, result(graph), diodes=diodes)
    figure.canvas.draw()
    places = [box.get_window_extent() for box in boxes(figure).values()]
    labels = [text.get_window_extent() for text in figure.axes[0].texts]
    for place in [*places, *labels]:
        assert place.x0 >= 0
        assert place.y0 >= 0
        assert place.x1 <= figure.bbox.x1
        assert place.y1 <= figure.bbox.y1
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])


def test_long_chains_are_folded_and_read_from_left_to_right() -> None:
    graph = ModelGraph(chain(40).nodes, chain(40).edges[:39])
    layout = lay_out(graph, node_sizes(graph, FULL), 7)
    assert layout.size[0] <= 7
    rows: dict[float, list[float]] = {}
    for x, y in (layout.centres[node.name] for node in graph.nodes):
        rows.setdefault(round(y, 3), []).append(x)
    assert list(rows) == sorted(rows, reverse=True)
    assert all(xs == sorted(xs) for xs in rows.values())
    lengths = [len(xs) for xs in rows.values()]
    assert max(lengths) - min(lengths) <= len(rows)
    assert len(layout.links) == len(layout.tails) == len(rows) - 1


def test_what_cannot_be_folded_is_wide() -> None:
    around = ModelGraph(chain(20).nodes, (*chain(20).edges, ("layer.0", "layer.19"), ("layer.1", "layer.18")))
    layout = lay_out(around, node_sizes(around, SMALL), 2)
    assert layout.size[0] > 2
    assert len(layout.links) <= 1


def test_svg_and_png(resnet: ModelGraph, tmp_path: Path) -> None:
    written = []
    for name in ("a.svg", "b.svg", "a.png"):
        figure = graph_figure(resnet, result(resnet), title="a model", diodes=True)
        written.append(save_graph_figure(figure, tmp_path / name).read_bytes())
    assert written[0] == written[1]
    root = ElementTree.fromstring(written[0])
    ids = {element.get("id") for element in root.iter()}
    assert {node.name for node in resnet.nodes} <= ids
    assert written[2].startswith(b"\x89PNG")
    with pytest.raises(AnalysisError, match=r"end its name in .svg or .png"):
        save_graph_figure(graph_figure(resnet), tmp_path / "a.txt")


def test_mistakes_are_explained(resnet: ModelGraph) -> None:
    with pytest.raises(AnalysisError, match=r"layer 'layer.0' of the result is no probed node"):
        graph_figure(resnet, result(chain(2)))
    with pytest.raises(AnalysisError, match="no palette 'grey'; choose one of red-green, colour-blind"):
        graph_figure(resnet, palette="grey")  # type: ignore[arg-type]
    with pytest.raises(AnalysisError, match="there is no result"):
        graph_over_training(resnet, {})
    with pytest.raises(AnalysisError, match="'valid' has no readings"):
        graph_figure(resnet, ProbeResult("valid", (), ()))
