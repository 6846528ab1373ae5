"""One class per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from .contract import Target

__all__ = ["Classification"]

_FEW = 32  # classes


@dataclass(frozen=True)
class Classification(Target):
    """One class of `num_classes` per row; labels are integers, `ignore_index` marks rows to leave out.

    Loss: cross-entropy in nats. Error: fraction of rows whose most probable class is wrong.
    """

    num_classes: int
    ignore_index: int = -100
    label_dims: ClassVar[int] = 0

    def __post_init__(self) -> None:
        whole_number("num_classes", self.num_classes)
        whole_number("ignore_index", self.ignore_index)
        if self.num_classes < 2:
            raise ProbeError(f"num_classes={self.num_classes}: a classifier needs at least 2 classes.")

    @property
    def width(self) -> int:
        """Outputs of the probe."""
        return self.num_classes

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `measure` gives, in order."""
        return ("loss", "error", "top5_error") if self.num_classes > 5 else ("loss", "error")

    def check(self, y: torch.Tensor) -> torch.Tensor:
        """Labels as int64, refused if they are no class numbers (on a GPU: where that costs no waiting)."""
        if y.is_floating_point() or y.is_complex():
            raise ProbeError(
                f"labels are {str(y.dtype).removeprefix('torch.')}, but Classification needs whole numbers; "
                "use Regression or MultiLabel targets, or convert them with .long()."
            )
        y = y.long()
        if not y.is_cuda and y.numel():
            counted = y[y != self.ignore_index]
            if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= self.num_classes):
                raise ProbeError(self._out_of_range(counted))
        return y

    def _out_of_range(self, y: torch.Tensor) -> str:
        """The sentence about labels that are no class."""
        return (
            f"label {int(y.min()) if int(y.min()) < 0 else int(y.max())} is out of range: with "
            f"num_classes={self.num_classes} labels are 0 to {self.num_classes - 1}"
            f" (or ignore_index={self.ignore_index})."
        )

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        """Which rows count: bool, shape of y; not those that a GPU has yet to be refused for."""
        return (y >= 0) & (y < self.num_classes) & (y != self.ignore_index)

    def faulty(self, y: torch.Tensor) -> torch.Tensor:
        """Whether any label is no class, as a 0-d bool tensor, without waiting for a GPU."""
        return ((y < 0) | (y >= self.num_classes)).logical_and_(y != self.ignore_index).any()

    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-row loss (G, n) and its gradient in the logits (G, n, c): softmax minus one-hot."""
        y = y.clamp(0, self.num_classes - 1)
        log_p = _log_softmax(logits)
        loss = -log_p.gather(2, y.expand(len(logits), -1)[..., None]).squeeze(2)
        one_hot = y[:, None] == torch.arange(self.num_classes, device=y.device)
        return loss, log_p.exp_().sub_(one_hot.to(log_p.dtype))

    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Per-row metrics, shape (metrics, G, n). Ties rank the lower class first, as argmax does."""
        y = y.clamp(0, self.num_classes - 1)
        own = logits.gather(2, y.expand(len(logits), -1)[..., None])
        loss = torch.logsumexp(logits, dim=-1) - own.squeeze(2)
        lower = torch.arange(self.num_classes, device=y.device) < y[:, None]
        rank = ((logits > own) | ((logits == own) & lower)).sum(-1)
        ranks = [(rank >= k).to(loss.dtype) for k in (1, 5)][: len(self.metrics) - 1]
        return torch.stack([loss, *ranks])

    def summary(self, y: torch.Tensor) -> torch.Tensor:
        """Additive statistics of labels: how often each class occurs, float64, shape (num_classes,)."""
        return torch.bincount(y, minlength=self.num_classes).double()

    def majority_error(self, summary: torch.Tensor) -> float:
        """Error of always answering the most frequent class."""
        return float(1 - summary.max() / summary.sum())

    def model_errors(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        """Of an output that has one number per class for each of these labels."""
        if y.ndim != 1 or output.shape != (len(y), self.num_classes):
            return None
        return (output.argmax(1) != y).double()

    def shape_hint(self, given: tuple[int, ...]) -> str | None:
        """One-hot labels."""
        if given != (self.num_classes,):
            return None
        return f"labels have shape (B, {given[0]}), one-hot perhaps; give class numbers: y.argmax(1)."


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the last dimension; where that is short torch is up to thirty times faster along another one."""
    if logits.shape[-1] > _FEW:
        return F.log_softmax(logits, dim=-1)
    return F.log_softmax(logits.transpose(-1, -2).contiguous(), dim=-2).transpose(-1, -2)
