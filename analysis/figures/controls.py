"""Figures of the controls of probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes import CodeLength, Selectivity

from .probes import layer_axis, width_for
from .style import BLUE, GREY, ORANGE, canvas

__all__ = ["code_length_figure", "random_labels_figure"]


def random_labels_figure(found: Sequence[Selectivity], *, title: str = "") -> Figure:
    """Error of each layer's probe on its task and on random labels; what lies between is its selectivity."""
    layers = [one.layer for one in found]
    figure, (axes,) = canvas(width_for(layers))
    x = range(len(layers))
    task = 100 * np.array([one.error for one in found])
    control = 100 * np.array([one.control_error for one in found])
    axes.fill_between(x, task, control, color=GREY, alpha=0.15, lw=0, label="selectivity")
    for name, error, bars, colour, marker in (
        ("random labels", control, [one.control_error_se for one in found], ORANGE, "D"),
        ("the task", task, [one.error_se for one in found], BLUE, "s"),
    ):
        bars_percent = 200 * np.array(bars)
        axes.errorbar(
            x, error, bars_percent, label=name, color=colour, marker=marker, ms=4.5, lw=1.6, capsize=2
        )
    _finish(axes, layers, "error on the training rows (%)", f"{title}: task and random labels")
    return figure


def code_length_figure(found: Sequence[CodeLength], *, title: str = "") -> Figure:
    """Bits that a label takes, given each layer, beside those that it takes without."""
    layers = [one.layer for one in found]
    figure, (axes,) = canvas(width_for(layers))
    bits = [one.bits / one.n for one in found]
    axes.plot(range(len(layers)), bits, color=BLUE, marker="s", ms=4.5, lw=1.6, label="given the layer")
    axes.axhline(
        found[0].uniform_bits / found[0].n, color="black", ls=":", lw=1, label="all classes equally likely"
    )
    _finish(axes, layers, "prequential code (bits per label)", f"{title}: code length of the labels")
    return figure


def _finish(axes: Axes, layers: Sequence[str], unit: str, title: str) -> None:
    layer_axis(axes, layers)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=11)
    axes.legend(frameon=False, fontsize=8)
