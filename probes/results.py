"""What the probes say: readings with their units, examples and standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thermoscope.errors import ProbeError
from thermoscope.nearest import the_nearest

from .intervals import normal

__all__ = ["ProbeResult", "Reading", "Reference"]


@dataclass(frozen=True)
class Reading:
    """One probe on one split.

    Attributes:
        layer: name of the hook point.
        target: name of the label set (`"y"` where there is one).
        reduction: how the layer's features were reduced, and what was: layout, size of one example, and
            the limit of `"auto"`, as in `"avg:8 of BCHW 64x56x56, auto:4096"`.
        features: numbers that the probe reads.
        lr: the probe's learning rate (the best of a grid on training or validation data, never on this);
            None for a convex fit.
        steps: training steps that the probe has had.
        n: rows that the reading rests on: examples, or positions that have a label.
        loss: mean loss: cross-entropy in nats, or squared error in the labels' units.
        loss_se: its standard error. Rows of one example are not taken for independent.
        error: fraction wrong; for regression the fraction of variance left unexplained.
        error_se: its standard error. It says nothing where no row is wrong.
        error_low: lower end of the 95% interval of the error, by Wilson's score (see `intervals.py`); for
            regression 1.96 standard errors below. None in records of version 0.1.
        error_high: its upper end.
        top5_error: fraction of rows whose class is not among the five most probable; None up to 5 classes.
        top5_error_se: its standard error.
        l2: strength of the regularisation of a convex fit.
        gap: certified upper bound, in nats, on how far a convex fit's training objective is from its minimum.
        objective: that training objective, in nats, which the gap is to be compared with.
        converged: whether the gap is within the tolerance of the fit. These two are None in records of
            version 0.1, and all three where nothing was fitted by descent to an optimum.
    """

    layer: str
    target: str
    reduction: str
    features: int
    lr: float | None
    steps: int
    n: int
    loss: float
    loss_se: float
    error: float
    error_se: float
    top5_error: float | None
    top5_error_se: float | None
    l2: float | None = None
    gap: float | None = None
    error_low: float | None = None
    error_high: float | None = None
    objective: float | None = None
    converged: bool | None = None

    @property
    def error_interval(self) -> tuple[float, float]:
        """The 95% interval of the error; by its standard error where the record has none."""
        if self.error_low is None or self.error_high is None:
            return normal(self.error, self.error_se)
        return (self.error_low, self.error_high)


@dataclass(frozen=True)
class Reference:
    """What to hold a target's readings against, on the same rows.

    Attributes:
        target: name of the label set.
        n: rows.
        majority_error: error of always answering the most frequent answer of this split; NaN where a
            target of your own does not say it.
        model_error: the model's own error, where its output has one number per class of the first target.
        model_error_se: its standard error.
        model_error_low: lower end of its 95% interval, as of a reading's error.
        model_error_high: its upper end.
    """

    target: str
    n: int
    majority_error: float
    model_error: float | None
    model_error_se: float | None
    model_error_low: float | None = None
    model_error_high: float | None = None

    @property
    def model_interval(self) -> tuple[float, float]:
        """The 95% interval of the model's own error; NaN without one."""
        if self.model_error_low is not None and self.model_error_high is not None:
            return (self.model_error_low, self.model_error_high)
        if self.model_error is None or self.model_error_se is None:
            return (math.nan, math.nan)
        return normal(self.model_error, self.model_error_se)


@dataclass(frozen=True)
class ProbeResult:
    """All readings of one evaluation, in execution order of the layers.

    Attributes:
        split: the name that the caller gave the data.
        readings: one per layer and target.
        references: one per target.
        missing: layers with a probe that the model did not run in this evaluation (auxiliary heads that
            run in training only, say).
    """

    split: str
    readings: tuple[Reading, ...]
    references: tuple[Reference, ...]
    missing: tuple[str, ...] = ()

    def __getitem__(self, layer: str) -> Reading:
        """The reading of a layer (of its first target).

        Raises:
            ProbeError: if there is none, with the nearest names.
        """
        for reading in self.readings:
            if reading.layer == layer:
                return reading
        raise ProbeError(
            f"no reading for layer {layer!r}; {the_nearest(layer, [r.layer for r in self.readings])}."
        )

    def of(self, target: str) -> ProbeResult:
        """The part that concerns one target.

        Raises:
            ProbeError: if there is no such target.
        """
        names = [r.target for r in self.readings]
        if names and target not in names:
            raise ProbeError(f"no reading for target {target!r}; {the_nearest(target, names)}.")
        return ProbeResult(
            self.split,
            tuple(r for r in self.readings if r.target == target),
            tuple(r for r in self.references if r.target == target),
            self.missing,
        )

    def __str__(self) -> str:
        names = {r.target for r in self.readings}
        columns: dict[str, list[str]] = {"layer": [r.layer for r in self.readings]}
        columns["error (%)"] = [f"{100 * r.error:.2f}" for r in self.readings]
        columns["95% interval"] = [_interval(r.error_interval) for r in self.readings]
        columns["loss"] = [f"{r.loss:.4f} ± {r.loss_se:.4f}" for r in self.readings]
        if any(r.top5_error is not None for r in self.readings):
            columns["top-5 error (%)"] = [_percent(r.top5_error, r.top5_error_se) for r in self.readings]
        if any(r.gap is not None for r in self.readings):
            columns["gap (nats)"] = ["" if r.gap is None else f"{r.gap:.1e}" for r in self.readings]
        columns["features"] = [str(r.features) for r in self.readings]
        columns["reduction"] = [r.reduction for r in self.readings]
        if len(names) > 1:
            columns["target"] = [r.target for r in self.readings]
        lines = _table(columns)
        for ref in self.references:
            own = ""
            if ref.model_error is not None:
                interval = _interval(ref.model_interval)
                own = f", the model's own {100 * ref.model_error:.2f}% (95% interval {interval})"
            name = f" ({ref.target})" if len(names) > 1 else ""
            majority = (
                ""
                if math.isnan(ref.majority_error)
                else (f"; majority class {100 * ref.majority_error:.2f}% wrong")
            )
            lines.append(f"{self.split}{name}: {ref.n:,} rows{majority}{own}")
        return "\n".join(lines)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def _percent(value: float | None, se: float | None) -> str:
    return "" if value is None or se is None else f"{100 * value:.2f} ± {100 * se:.2f}"


def _table(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of text, numbers to the right and names to the left."""
    cells = []
    for title, values in columns.items():
        width = max(map(len, (title, *values)))
        is_text = title in ("layer", "reduction", "target")
        cells.append([f"{cell:<{width}}" if is_text else f"{cell:>{width}}" for cell in (title, *values)])
    return ["  ".join(row).rstrip() for row in zip(*cells, strict=True)]
