"""Figures of curvature, after those of Alain, Le Roux & Manzagol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hessian import Density, LineSearch, Spectrum

from .style import BLUE, GREY, ORANGE, canvas, finish_axes, log_ticks

__all__ = [
    "best_decreases",
    "best_steps",
    "density_figure",
    "eigenvalues_over_training",
    "line_search_figure",
    "parameter_shares",
]

_COLOURS = "cividis"


def eigenvalues_over_training(
    spectra: Mapping[int, Spectrum], losses: Mapping[int, float], *, title: str = ""
) -> Figure:
    """log |lambda| of LA (dots) and SA (triangles) by step, the loss on a second axis (figure 11.5).

    A hollow mark is an eigenvalue that has not converged, a grey one has the other sign than its end
    should have.
    """
    figure, (axes,) = canvas()
    for name, colour, marker in (("largest", BLUE, "o"), ("smallest", ORANGE, "v")):
        label = "LA, largest" if name == "largest" else "SA, smallest (|λ|, λ < 0)"
        for step, spectrum in spectra.items():
            for pair in getattr(spectrum, name):
                expected = (pair.value > 0) == (name == "largest")
                mark = colour if expected else GREY
                face = mark if pair.converged else "none"
                axes.plot(_shown(step), abs(pair.value), marker, ms=4, mec=mark, mfc=face, alpha=0.8)
        edge = [abs(getattr(s, name)[0].value) if getattr(s, name) else np.nan for s in spectra.values()]
        axes.plot([_shown(step) for step in spectra], edge, color=colour, lw=1.2, label=label)
    axes.set(xscale="log", yscale="log", xlabel="minibatches + 1", ylabel="|λ|")
    axes.set_title(title or "Extreme eigenvalues of the Hessian over training", fontsize=11)
    second = axes.twinx()
    second.plot(
        [_shown(step) for step in losses], list(losses.values()), "--", color="black", lw=1.2, label="loss"
    )
    second.set(ylabel="loss (nats)", ylim=(0, None))
    second.spines["top"].set_visible(False)
    handles = [*axes.get_legend_handles_labels()[0], *second.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return figure


def best_decreases(searches: Sequence[tuple[int, LineSearch]], *, title: str = "") -> Figure:
    """Best decrease of the loss along each eigenvector against its eigenvalue, coloured by time (11.3).

    Directions that do not determine it are left out, and counted in the title.
    """
    figure, (axes,) = canvas()
    known = [(step, s) for step, s in searches if s.determined]
    found = [(step, s) for step, s in known if s.decrease > 0]
    curvature = np.array([s.curvature for _, s in found])
    norm = _time_bar(figure, axes, [step for step, _ in found])
    _by_time(axes, curvature, np.array([s.decrease for _, s in found]), found, norm)
    if len(found):
        axes.set_xscale("symlog", linthresh=max(1e-6, float(np.abs(curvature).min())))
    axes.axvline(0, color="black", lw=0.8)
    axes.set(yscale="log", xlabel="eigenvalue λ", ylabel="best decrease of the loss (nats)")
    title = title or "How far the loss falls along each eigenvector"
    axes.set_title(title + _left_out(len(searches) - len(known)), fontsize=11)
    return figure


def best_steps(searches: Sequence[tuple[int, LineSearch]], *, title: str = "") -> Figure:
    """1 / alpha* against |lambda|, with the line where Newton's step is best (11.4).

    Directions that do not determine it are left out, and counted in the title; so are best steps backwards
    (alpha* < 0), which only given step sizes can have.
    """
    figure, axes = canvas(9.0, columns=2)
    known = [(step, s) for step, s in searches if s.determined]
    found = [(step, s) for step, s in known if s.alpha_best > 0 and s.curvature != 0]
    norm = _time_bar(figure, axes[1], [step for step, _ in found])
    for one, sign, name in ((axes[0], 1, "positive curvature"), (axes[1], -1, "negative curvature")):
        side = [(step, s) for step, s in found if sign * s.curvature > 0]
        x = np.array([abs(s.curvature) for _, s in side])
        y = np.array([1 / s.alpha_best for _, s in side])
        _by_time(one, x, y, side, norm)
        ticks: tuple[Any, ...] = ()
        if len(side):
            line = np.array([x.min(), x.max()])
            one.plot(line, line, "--", color="black", lw=1, label="1/α* = |λ|")
            ticks = (one.xaxis, x), (one.yaxis, np.append(y, line))
            one.legend(frameon=False, fontsize=8)
        one.set(xscale="log", yscale="log", xlabel="|λ|", ylabel="1/α*", title=name)
        for axis, values in ticks:
            log_ticks(axis, float(values.min()), float(values.max()))
        one.title.set_fontsize(10)
    title = title or "The best step along each eigenvector"
    figure.suptitle(title + _left_out(len(searches) - len(known)), fontsize=11)
    return figure


def line_search_figure(search: LineSearch, *, title: str = "") -> Figure:
    """The loss along a direction and its quadratic model, zoomed in and out (11.1, 11.2)."""
    figure, (near, far) = canvas(9.0, 3.8, columns=2)
    unit = 1 / max(abs(search.curvature), 1e-12)
    for axes, reach, name in (
        (near, 3 * unit, "near: a few times 1/|λ|"),
        (far, max(30 * unit, 4 * abs(search.alpha_best)), "far: to beyond α*"),
    ):
        inside = np.abs(search.alphas) <= reach
        alphas, losses = search.alphas[inside], search.losses[inside]
        finite = np.isfinite(losses)
        axes.plot(alphas[finite], losses[finite], "o-", color=BLUE, ms=3.5, lw=1.4, label="the loss")
        grid = np.linspace(-reach, reach, 200)
        model = search.quadratic(grid)
        axes.plot(grid, model, "--", color=ORANGE, lw=1.2, label="quadratic model")
        if abs(search.alpha_best) <= reach:
            label = f"α* = {search.alpha_best:.3g}" + ("" if search.bracketed else " (still falling)")
            label += "" if search.determined else "; v is not determined"
            axes.plot(search.alpha_best, search.loss_best, "*", color="black", ms=10, label=label)
        low, high = float(losses[finite].min()), float(losses[finite].max())
        axes.set_ylim(low - 0.3 * (high - low + 1e-12), high + 0.3 * (high - low + 1e-12))
        axes.set(xlabel="α, step size", title=name)
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(useOffset=False, axis="y")
        axes.legend(frameon=False, fontsize=8)
    near.set_ylabel("loss (nats)")
    figure.suptitle(f"{title or 'the loss along v'} (λ = {search.curvature:.4g})", fontsize=11)
    return figure


def density_figure(density: Density, *, title: str = "") -> Figure:
    """The spectral density with two standard errors, on a logarithmic scale."""
    figure, (axes,) = canvas()
    floor = max(float(density.density.max()) * 1e-7, 1e-12)
    low = np.maximum(density.density - 2 * density.standard_error, floor)
    high = np.maximum(density.density + 2 * density.standard_error, floor)
    axes.fill_between(density.grid, low, high, color=BLUE, alpha=0.25, lw=0, label="± 2 standard errors")
    axes.plot(density.grid, np.maximum(density.density, floor), color=BLUE, lw=1.4, label="density")
    axes.axvline(0, color="black", lw=0.8)
    axes.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ", ylabel="density")
    axes.set_title(title or "Spectral density of the Hessian", fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    return figure


def parameter_shares(spectrum: Spectrum, shares: Any, *, title: str = "") -> Figure:
    """In which parameters each eigenvector lives: shares (p, parameters) of its squared norm.

    Where the angle that a vector is known to leaves more than 0.01 of a share open, its name says how much.
    """
    shares = np.asarray(shares)
    names, k = list(spectrum.layout), len(spectrum.largest)
    labels = [f"LA {i + 1}" for i in range(k)] + [f"SA {i + 1}" for i in range(len(spectrum.smallest))]
    doubts = [pair.doubt for pair in spectrum.largest + spectrum.smallest]
    labels = [
        name + ("" if doubt <= 0.01 else f" ± {doubt:.2f}" if doubt < 1 else " not determined")
        for name, doubt in zip(labels, doubts, strict=True)
    ]
    width = min(max(5.0, 2.4 + 0.3 * len(labels)), 14)
    figure, (axes,) = canvas(width, min(max(3.0, 1.4 + 0.22 * len(names)), 14))
    image = axes.imshow(shares.T, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    every = 1 + (len(names) - 1) // 60
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize=7)
    axes.grid(False)
    figure.colorbar(image, ax=axes, label="share of the squared norm", pad=0.01)
    axes.set_title(title or "Where the eigenvectors live", fontsize=11)
    return figure


def _left_out(count: int) -> str:
    return f" ({count} not determined)" if count else ""


def _shown(step: int) -> int:
    return step + 1  # a logarithmic axis has no 0


def _time_bar(figure: Figure, axes: Axes, steps: Sequence[int]) -> LogNorm:
    """The colours of the steps of all of a figure's points, with a bar that tells them."""
    time = sorted({_shown(step) for step in steps}) or [1]
    norm = LogNorm(time[0], max(time[-1], time[0] + 1))
    if steps:
        bar = figure.colorbar(ScalarMappable(norm, _COLOURS), ax=axes, label="minibatches + 1", pad=0.02)
        if len(time) <= 8:
            bar.set_ticks(time, labels=[f"{t:,}" for t in time])
            bar.minorticks_off()
    return norm


def _by_time(axes: Axes, x: Any, y: Any, searches: Sequence[tuple[int, LineSearch]], norm: LogNorm) -> None:
    """Points coloured by step; crosses where the loss was still falling at the last step size tried."""
    if not searches:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=GREY)
        return
    time = np.array([_shown(step) for step, _ in searches])
    inside = np.array([search.bracketed for _, search in searches])
    for which, marker, size, label in ((inside, "o", 22, None), (~inside, "x", 30, "still falling")):
        if which.any():
            axes.scatter(
                x[which],
                y[which],
                c=time[which],
                norm=norm,
                cmap=_COLOURS,
                s=size,
                marker=marker,
                label=label,
            )
    finish_axes(axes)
