"""Readings of fitted probes on any split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..mean_se import Tally
from ..results import ProbeResult, Reading, Reference
from ..targets import Classification
from .features import FeatureTable, Rows
from .fitted import PathPoint

__all__ = ["Scores", "reading", "result", "scores"]


@dataclass(frozen=True)
class Scores:
    """Mean (value, standard error) of each metric over a split's rows, and an interval; see `Reading`."""

    loss: tuple[float, float]
    error: tuple[float, float]
    top5_error: tuple[float, float] | None
    error_interval: tuple[float, float]


def reading(table: FeatureTable, fit: PathPoint, features: int, found: Scores) -> Reading:
    """What a split's reading says of a fit."""
    return Reading(
        layer=fit.layer,
        target="y",
        reduction=table.reductions[fit.layer],
        features=features,
        lr=None,
        steps=fit.iterations,
        n=table.n,
        loss=found.loss[0],
        loss_se=found.loss[1],
        error=found.error[0],
        error_se=found.error[1],
        top5_error=found.top5_error[0] if found.top5_error else None,
        top5_error_se=found.top5_error[1] if found.top5_error else None,
        l2=fit.l2,
        gap=fit.gap,
        error_low=found.error_interval[0],
        error_high=found.error_interval[1],
        objective=fit.objective,
        converged=fit.converged,
    )


def scores(rows: Rows, y: torch.Tensor, theta: torch.Tensor) -> Scores:
    """Measure softmax(W z + b), theta = [W b] of shape (C, size + 1), on standardised rows z."""
    target, tally = Classification(len(theta)), Tally()
    weight, bias = theta[:, :-1].float(), theta[:, -1].float()
    for block, z in rows.blocks(torch.float32):
        logits = torch.addmm(bias, z, weight.T)
        values = target.measure(logits[None], y[block])[:, 0]  # (metrics, rows)
        tally.add(values[..., None], torch.ones(len(z), 1, dtype=torch.bool, device=z.device))
    found = [(float(mean), float(error)) for mean, error in zip(*tally.means(), strict=True)]
    return Scores(found[0], found[1], found[2] if len(found) > 2 else None, tally.interval(1))


def result(split: str, table: FeatureTable, num_classes: int, readings: list[Reading]) -> ProbeResult:
    """The readings of a split, with the error of its majority class."""
    counts: npt.NDArray[np.int64] = np.bincount(table.labels, minlength=num_classes)
    majority = float(1 - counts.max() / counts.sum())
    return ProbeResult(split, tuple(readings), (Reference("y", table.n, majority, None, None),))
