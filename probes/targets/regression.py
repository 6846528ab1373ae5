"""Real numbers per row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from .contract import Target, real_labels

__all__ = ["Regression"]


@dataclass(frozen=True)
class Regression(Target):
    """`num_outputs` real numbers per row.

    Loss: squared error in the labels' units, mean over outputs. Error: the fraction of the labels'
    variance that is left unexplained (1 - R^2).
    """

    num_outputs: int = 1
    has_units: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole_number("num_outputs", self.num_outputs, least=1)

    @property
    def width(self) -> int:
        """Outputs of the probe."""
        return self.num_outputs

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `measure` gives, in order."""
        return ("loss",)

    def check(self, y: torch.Tensor) -> torch.Tensor:
        """Labels as float64 of shape (rows, num_outputs): dates vary little beside their size."""
        y = real_labels(y).double()
        if self.num_outputs == 1 and (y.ndim == 1 or y.shape[-1] != 1):
            y = y.unsqueeze(-1)
        if y.shape[-1] != self.num_outputs:
            raise ProbeError(
                f"Regression labels need {self.num_outputs} columns, not shape {tuple(y.shape)}."
            )
        if not y.is_cuda and not bool(torch.isfinite(y).all()):
            raise ProbeError("Regression labels hold NaN or infinite values.")
        return y

    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-row loss (G, n) and its gradient in the outputs (G, n, c)."""
        difference = logits - y
        return difference.square().mean(-1), difference * (2 / self.num_outputs)

    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Per-row metrics, shape (metrics, G, n)."""
        return (logits - y).square().mean(-1)[None]

    def summary(self, y: torch.Tensor) -> torch.Tensor:
        """Additive statistics of labels (rows, outputs): rows, sum and sum of squares, float64."""
        y = y.double()
        return torch.stack([torch.full_like(y[0], len(y)), y.sum(0), y.square().sum(0)])

    def majority_error(self, summary: torch.Tensor) -> float:
        """Answering the mean leaves all of the variance."""
        return 1.0

    def error(self, found: Mapping[str, tuple[float, float]], summary: torch.Tensor) -> tuple[float, float]:
        """The squared error in parts of the labels' variance (mean over outputs); NaN where that is zero."""
        rows, total, square = summary
        variance = float((square / rows - (total / rows).square()).clamp(min=0).mean())
        loss, loss_se = found["loss"]
        return (loss / variance, loss_se / variance) if variance > 0 else (math.nan, math.nan)
