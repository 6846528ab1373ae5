"""What a probing draws into its run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from probes import ProbeResult

from ..figures.controls import code_length_figure, random_labels_figure
from ..figures.network.figure import Palette, graph_figure, save_graph_figure
from ..figures.network.graph import model_graph
from ..figures.probes import error_by_depth
from ..figures.probes_over_training import error_curves, error_heat_map
from ..results.controls import Controls
from ..runs.run import Run

__all__ = ["draw_controls", "draw_network", "draw_training"]

_READOUTS = {"neighbours": "nearest neighbours", "ridge": "ridge regression"}


def draw_controls(run: Run, result: ProbeResult, controls: Controls, step: int) -> None:
    """A figure for each control that was measured."""
    title = f"{run.path.name}, step {step:,}" if step else run.path.name
    figures = {}
    others = {_READOUTS[name]: one for name, one in controls.readouts.items()}
    if others:
        figures["readouts"] = error_by_depth({"probe": result, **others}, title=f"{title}: ways to read out")
    if controls.random_labels is not None:
        figures["random_labels"] = random_labels_figure(controls.random_labels, title=title)
    if controls.code is not None:
        figures["code"] = code_length_figure(controls.code, title=title)
    if controls.curve is not None:
        figures["curve"] = error_curves(controls.curve, title=f"{title}: learning curves", x="training rows")
    for name, figure in figures.items():
        run.save_figure(figure, f"probes_{name}_step_{step:08d}")
        run.events.add_figure(f"controls/{name}", figure, step)


def draw_training(run: Run, results: Mapping[int, ProbeResult]) -> None:
    """Errors by layer and step: a heat map and curves."""
    title = f"{run.path.name}: probes at their optimum"
    last = max(results)
    figures = {"heat_map": error_heat_map(results, title=title), "curves": error_curves(results, title=title)}
    for name, figure in figures.items():
        run.save_figure(figure, f"probes_over_training_{name}")
        run.events.add_figure(f"probes/{results[last].split}/over training/{name}", figure, last)


def draw_network(
    run: Run,
    model: nn.Module,
    forward: Callable[[nn.Module], Any],
    result: ProbeResult,
    palette: Palette,
    diodes: bool,
) -> None:
    """The network coloured by error; `forward` runs the model once."""
    graph = model_graph(model, forward, [reading.layer for reading in result.readings])
    title = f"{run.path.name}: prediction error of a probe on each layer"
    figure = graph_figure(graph, result, palette=palette, diodes=diodes, title=title)
    for kind in ("png", "svg"):
        save_graph_figure(figure, run.path / "figures" / f"probes_network.{kind}")
