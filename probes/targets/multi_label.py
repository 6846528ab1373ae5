"""Several yes/no labels per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from .contract import Target, real_labels

__all__ = ["MultiLabel"]


@dataclass(frozen=True)
class MultiLabel(Target):
    """`num_labels` independent yes/no labels per row: y is 0 or 1, shape (rows, num_labels).

    Loss: binary cross-entropy in nats, mean over labels. Error: fraction of labels that are wrong.
    """

    num_labels: int

    def __post_init__(self) -> None:
        whole_number("num_labels", self.num_labels, least=1)

    @property
    def width(self) -> int:
        """Outputs of the probe."""
        return self.num_labels

    def check(self, y: torch.Tensor) -> torch.Tensor:
        """Labels as float32 of shape (rows, num_labels)."""
        y = real_labels(y).float()
        if y.shape[-1:] != (self.num_labels,):
            raise ProbeError(f"MultiLabel labels need {self.num_labels} columns, not shape {tuple(y.shape)}.")
        if not y.is_cuda and bool(((y != 0) & (y != 1)).any()):
            raise ProbeError("MultiLabel labels must be 0 or 1.")
        return y

    def faulty(self, y: torch.Tensor) -> torch.Tensor:
        """Whether any label is not 0 or 1."""
        return ((y != 0) & (y != 1)).any()

    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-row loss (G, n) and its gradient in the logits (G, n, c)."""
        return self.measure(logits, y)[0], (torch.sigmoid(logits) - y) / self.num_labels

    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Per-row metrics, shape (metrics, G, n)."""
        loss = F.binary_cross_entropy_with_logits(logits, y.expand_as(logits), reduction="none").mean(-1)
        return torch.stack([loss, ((logits > 0) != (y > 0.5)).to(loss.dtype).mean(-1)])

    def summary(self, y: torch.Tensor) -> torch.Tensor:
        """Additive statistics of labels (rows, labels): rows and sum per label, float64."""
        return torch.stack([torch.full_like(y[0], len(y)), y.sum(0)]).double()

    def majority_error(self, summary: torch.Tensor) -> float:
        """Error of answering each label's more frequent value."""
        share = summary[1] / summary[0]
        return float(torch.minimum(share, 1 - share).mean())
