"""How figures look: one place for canvas, colours and grid."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["BLUE", "GREEN", "GREY", "ORANGE", "PINK", "canvas", "finish_axes", "log_ticks"]

# Okabe & Ito: colour-blind readers can tell them apart.
GREY, BLUE, ORANGE, GREEN, PINK = "#7F7F7F", "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def canvas(width: float = 7.2, height: float = 4.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with axes side by side, drawn without a display."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for one in axes:
        finish_axes(one)
    return figure, axes


def finish_axes(axes: Axes, grid: str = "both") -> None:
    """A light grid behind the curves, and no frame at the top and the right."""
    axes.grid(False)
    axes.grid(axis=grid, color="#E5E5E5", lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Labels of a logarithmic axis from `low` to `high` that neither collide nor are missing."""
    few = high < 100 * low
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
