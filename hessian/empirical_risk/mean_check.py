"""Is the loss of a batch a mean over its examples? Evidence from every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from thermoscope.errors import HessianError

from .batch import moved, pieces, size_of, twice
from .batch_loss import Objective, non_finite
from .data_pass import Passes

__all__ = ["MeanCheck"]

_EXACT = 1e-6  # what float64 leaves of rounding, whatever the model


class MeanCheck:
    """Compares the loss of batches with the mean over their halves, or of one example with that of two alike.

    Rounding is no mistake: where the numbers differ by more than it mostly does, float64 decides.
    """

    def __init__(self, passes: Passes):
        self._passes, self._objective = passes, passes.objective
        self._weights = self._objective.weights()

    def __call__(self, batch: Any, terms: float) -> float:
        """The loss of this batch.

        Raises:
            HessianError: if it is no mean.
        """
        parts = self._parts(batch)
        counts = [self._passes.terms_of(part) for part in parts]
        times = sum(counts) / terms if parts else 1
        wanted = 2 if size_of(batch) == 1 else 1
        if parts and abs(times - wanted) > 1e-6:
            added = " + ".join(f"{count:g}" for count in counts)
            raise HessianError(
                f"count= gives {terms:g} for a batch, but {added} for its parts; it must add up."
            )
        whole = self._loss(self._objective, self._weights, batch)
        if not math.isfinite(whole):
            raise non_finite(whole)
        weighted = [(part, count / sum(counts)) for part, count in zip(parts, counts, strict=True) if count]
        losses = [self._loss(self._objective, self._weights, part) for part, _ in weighted]
        mean = sum(loss * share for loss, (_, share) in zip(losses, weighted, strict=True))
        tolerance = self._objective.tolerance
        if parts and _differ(whole, mean, losses, tolerance) and not self._is_rounding(batch, weighted):
            what = "the mean over its two halves" if wanted == 1 else "that of the same example twice"
            raise HessianError(
                f"the loss of a batch is {whole:.6g}, but {what} {mean:.6g}: it is no mean over examples. "
                "Use reduction='mean', say with count= what the mean is over, or take out what depends on "
                "the other examples of the batch."
            )
        return whole

    def _parts(self, batch: Any) -> list[Any]:
        """Two halves; an example alone, twice; nothing where a batch cannot be cut."""
        size = size_of(batch)
        if size == 1:
            doubled = twice(batch)
            return [] if doubled is None else [doubled]
        parts = pieces(batch, -(-(size or 1) // 2))
        return parts if len(parts) == 2 else []

    def _is_rounding(self, batch: Any, weighted: Sequence[tuple[Any, float]]) -> bool:
        exact = self._objective.in_double()
        weights = exact.weights()
        try:
            whole = self._loss(exact, weights, moved(batch, exact.device, torch.float64))
            losses = [
                self._loss(exact, weights, moved(part, exact.device, torch.float64)) for part, _ in weighted
            ]
        except Exception:  # a model or a loss that only works in its own dtype
            return False
        mean = sum(loss * share for loss, (_, share) in zip(losses, weighted, strict=True))
        return not _differ(whole, mean, losses, _EXACT)

    @staticmethod
    def _loss(objective: Objective, weights: Any, batch: Any) -> float:
        with objective.explained(batch):
            return float(objective.loss(weights[0], weights[1], batch).double())


def _differ(whole: float, mean: float, losses: Sequence[float], tolerance: float) -> bool:
    return not abs(mean - whole) <= tolerance * max(map(abs, (whole, *losses)))
