"""What the probes say: readings with their units, examples and standard errors."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ProbeError
from .selection import nearest

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
        error_se: its standard error.
        top5_error: fraction of rows whose class is not among the five most probable; None up to 5 classes.
        top5_error_se: its standard error.
        l2: strength of the regularisation of a convex fit.
        gap: certified upper bound, in nats, on how far a convex fit's training objective is from its minimum.
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


@dataclass(frozen=True)
class Reference:
    """What to hold a target's readings against, on the same rows.

    Attributes:
        target: name of the label set.
        n: rows.
        majority_error: error of always answering the most frequent answer of this split.
        model_error: the model's own error, where its output has one number per class of the first target.
        model_error_se: its standard error.
    """

    target: str
    n: int
    majority_error: float
    model_error: float | None
    model_error_se: float | None


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
            f"no reading for layer {layer!r}; {nearest(layer, [r.layer for r in self.readings])}."
        )

    def of(self, target: str) -> ProbeResult:
        """The part that concerns one target.

        Raises:
            ProbeError: if there is no such target.
        """
        names = [r.target for r in self.readings]
        if names and target not in names:
            raise ProbeError(f"no reading for target {target!r}; {nearest(target, names)}.")
        return ProbeResult(
            self.split,
            tuple(r for r in self.readings if r.target == target),
            tuple(r for r in self.references if r.target == target),
            self.missing,
        )

    def __str__(self) -> str:
        width = max([len(r.layer) for r in self.readings] + [5])
        names = {r.target for r in self.readings}
        lines = [f"{'layer':<{width}}  error (%)      loss            features  reduction"]
        for r in self.readings:
            tail = f"  {r.target}" if len(names) > 1 else ""
            lines.append(
                f"{r.layer:<{width}}  {100 * r.error:6.2f} ±{100 * r.error_se:5.2f}"
                f"  {r.loss:7.4f} ±{r.loss_se:.4f}  {r.features:8d}  {r.reduction}{tail}"
            )
        for ref in self.references:
            own = "" if ref.model_error is None else f", the model's own {100 * ref.model_error:.2f}%"
            name = f" ({ref.target})" if len(names) > 1 else ""
            lines.append(
                f"{self.split}{name}: {ref.n:,} rows; "
                f"majority class {100 * ref.majority_error:.2f}% wrong{own}"
            )
        return "\n".join(lines)
