"""Figures of probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes import ProbeResult

from .style import BLUE, GREEN, GREY, ORANGE, PINK, canvas, finish_axes, log_ticks

__all__ = ["error_by_depth", "layer_axis", "width_for"]

_CURVES = ((GREY, "o"), (BLUE, "s"), (ORANGE, "D"), (GREEN, "^"), (PINK, "v"))
_WIDE = 12  # ratio of errors from which their scale is logarithmic
_MOST_LABELS = 45  # layer names that fit side by side; of more, every second or third is written


def error_by_depth(
    results: Mapping[str, ProbeResult], *, title: str = "", target: str | None = None
) -> Figure:
    """Prediction error of every probe against depth, one curve per result.

    Args:
        results: by legend text, such as `{"at initialisation": start, "after training": now}`; five at most.
        title: above the picture.
        target: which label set; the first one if not given.

    Bars are 95% intervals. The scale is logarithmic where errors differ twelvefold or more. A dashed
    line is the model's own error in the last result, a dotted one the error of always answering the majority
    class.
    """
    results = {name: result.of(target or result.readings[0].target) for name, result in results.items()}
    layers = _union([[r.layer for r in result.readings] for result in results.values()])
    figure, (axes,) = canvas(width_for(layers))
    curves = _CURVES[1:] if len(results) == 1 else _CURVES
    for (name, result), (colour, marker) in zip(results.items(), curves, strict=False):
        x = [layers.index(r.layer) for r in result.readings]
        error = 100 * np.array([r.error for r in result.readings])
        bars = np.abs(error - 100 * np.array([r.error_interval for r in result.readings]).T)
        axes.errorbar(x, error, bars, label=name, color=colour, marker=marker, ms=4.5, lw=1.6, capsize=2)
    _references(axes, list(results.values())[-1])
    layer_axis(axes, layers)
    _scale_errors(axes, [100 * r.error for result in results.values() for r in result.readings])
    axes.set_ylabel("prediction error of the probe (%)")
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    return figure


def layer_axis(axes: Axes, layers: Sequence[str]) -> None:
    """Layers from left to right."""
    every = 1 + (len(layers) - 1) // _MOST_LABELS
    axes.set_xticks(range(0, len(layers), every), layers[::every], fontsize=8)
    axes.tick_params(axis="x", labelrotation=45)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer, in execution order")
    finish_axes(axes, grid="y")


def width_for(layers: Sequence[str]) -> float:
    """Inches for a figure with so many layers."""
    return min(max(6.4, 1.6 + 0.34 * len(layers)), 16)


def _scale_errors(axes: Axes, errors: list[float]) -> None:
    """Percent from zero; in its logarithm where errors differ too much to be seen otherwise."""
    if min(errors) <= 0 or max(errors) < _WIDE * min(errors):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.set_ylim(0.7 * min(errors), 1.5 * max(errors))
    log_ticks(axes.yaxis, 0.7 * min(errors), 1.5 * max(errors))


def _references(axes: Axes, result: ProbeResult) -> None:
    for reference in result.references:
        if reference.model_error is not None:
            text = f"the model's own error ({100 * reference.model_error:.1f}%)"
            axes.axhline(100 * reference.model_error, color="black", ls="--", lw=1, label=text)
        highest = max((r.error for r in result.readings), default=0.0)
        if reference.majority_error < 3 * highest:
            text = f"majority class ({100 * reference.majority_error:.0f}%)"
            axes.axhline(100 * reference.majority_error, color="black", ls=":", lw=1, label=text)


def _union(orders: list[list[str]]) -> list[str]:
    """All layers, in the order of the longest list, others behind."""
    longest = max(orders, key=len)
    return longest + [name for order in orders for name in order if name not in longest]
