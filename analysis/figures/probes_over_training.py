"""Probes over the training of a network: a heat map and curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from probes import ProbeResult, Reading

from .style import canvas, finish_axes

__all__ = ["error_curves", "error_heat_map"]

_COLOURS = "viridis"  # even in lightness, and safe for colour-blind readers
_MOST_NUMBERS = 300  # cells up to which the error is written into each
_MOST_TICKS = 40


def error_heat_map(
    results: Mapping[int, ProbeResult], *, title: str = "", target: str | None = None
) -> Figure:
    """Prediction error of each layer's probe (rows, the input on top) at each step (columns).

    Args:
        results: by training step.
        title: above the picture.
        target: which label set; the first one if not given.
    """
    steps = sorted(results)
    layers, errors = _table([results[step] for step in steps], target)
    height, width = len(layers), len(steps)
    figure, (axes,) = canvas(min(max(5, 2.8 + 0.55 * width), 16), min(max(3.4, 1.3 + 0.24 * height), 14))
    finish_axes(axes, grid="x")
    axes.grid(False)
    image = axes.imshow(errors, aspect="auto", cmap=_COLOURS, interpolation="nearest")
    axes.set_xticks(*_ticks([f"{step:,}" for step in steps]), fontsize=8, rotation=45, ha="right")
    axes.set_yticks(*_ticks(layers), fontsize=8)
    axes.set_xlabel("training step")
    axes.set_ylabel("layer, in execution order")
    axes.set_title(title, fontsize=11)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.02, label="prediction error of the probe (%)")
    if errors.size <= _MOST_NUMBERS:
        middle = (np.nanmin(errors) + np.nanmax(errors)) / 2
        for (row, column), error in np.ndenumerate(errors):
            if np.isfinite(error):
                colour = "white" if error < middle else "black"
                text = f"{error:.0f}" if error >= 10 else f"{error:.1f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    return figure


def error_curves(
    results: Mapping[int, ProbeResult],
    *,
    title: str = "",
    target: str | None = None,
    x: str = "training step",
) -> Figure:
    """Prediction error against training step, a curve for each layer, coloured by depth.

    Args:
        results: by training step, or whatever `x` says.
        title: above the picture.
        target: which label set; the first one if not given.
        x: what the results are by.

    Bars are 95% intervals. Steps are on a scale that is linear up to the first one after 0 and
    logarithmic beyond.
    """
    steps = sorted(results)
    layers, errors = _table([results[step] for step in steps], target)
    low = _table([results[step] for step in steps], target, lambda r: r.error_interval[0])[1]
    high = _table([results[step] for step in steps], target, lambda r: r.error_interval[1])[1]
    bars = np.stack([errors - low, high - errors], axis=1)
    figure, (axes,) = canvas()
    colours = colormaps[_COLOURS](np.linspace(0, 0.92, len(layers)))
    for name, error, bar, colour in zip(layers, errors, bars, colours, strict=True):
        axes.errorbar(steps, error, bar, label=name, color=colour, marker="o", ms=3, lw=1.4, capsize=1.5)
    positive = [step for step in steps if step > 0]
    if positive and positive[-1] > 20 * positive[0]:
        axes.set_xscale("symlog", linthresh=positive[0])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel("prediction error of the probe (%)")
    axes.set_title(title, fontsize=11)
    columns = 1 + (len(layers) - 1) // 24
    axes.legend(frameon=False, fontsize=7, ncols=columns, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _table(
    results: Sequence[ProbeResult], target: str | None, of: Callable[[Reading], float] = lambda r: r.error
) -> tuple[list[str], np.ndarray]:
    """Layers, and what is asked of a reading in percent (layers, results); NaN where there is no reading."""
    results = [result.of(target or result.readings[0].target) for result in results]
    layers = list(dict.fromkeys(r.layer for result in reversed(results) for r in result.readings))
    values = np.full((len(layers), len(results)), np.nan)
    for column, result in enumerate(results):
        for reading in result.readings:
            values[layers.index(reading.layer), column] = 100 * of(reading)
    return layers, values


def _ticks(names: Sequence[str]) -> tuple[range, list[str]]:
    every = 1 + (len(names) - 1) // _MOST_TICKS
    return range(0, len(names), every), list(names)[::every]
