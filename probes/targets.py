"""Targets: what a probe predicts, with its loss, the loss's gradient and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from thermoscope.errors import ProbeError

from .arguments import whole_number

__all__ = ["Classification", "MultiLabel", "Regression", "Target", "as_targets"]

_FEW = 32  # classes


@dataclass(frozen=True)
class Classification:
    """One class of `num_classes` per row; labels are integers, `ignore_index` marks rows to leave out.

    Loss: cross-entropy in nats. Error: fraction of rows whose most probable class is wrong.
    """

    num_classes: int
    ignore_index: int = -100

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
                raise ProbeError(self.out_of_range(counted))
        return y

    def out_of_range(self, y: torch.Tensor) -> str:
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


@dataclass(frozen=True)
class MultiLabel:
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

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `measure` gives, in order."""
        return ("loss", "error")

    def check(self, y: torch.Tensor) -> torch.Tensor:
        """Labels as float32 of shape (rows, num_labels)."""
        y = _real(y).float()
        if y.shape[-1:] != (self.num_labels,):
            raise ProbeError(f"MultiLabel labels need {self.num_labels} columns, not shape {tuple(y.shape)}.")
        if not y.is_cuda and bool(((y != 0) & (y != 1)).any()):
            raise ProbeError("MultiLabel labels must be 0 or 1.")
        return y

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        """Which rows count: all."""
        return torch.ones_like(y[..., 0], dtype=torch.bool)

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


@dataclass(frozen=True)
class Regression:
    """`num_outputs` real numbers per row.

    Loss: squared error in the labels' units, mean over outputs. Error: the fraction of the labels'
    variance that is left unexplained (1 - R^2).
    """

    num_outputs: int = 1

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
        y = _real(y).double()
        if self.num_outputs == 1 and (y.ndim == 1 or y.shape[-1] != 1):
            y = y.unsqueeze(-1)
        if y.shape[-1] != self.num_outputs:
            raise ProbeError(
                f"Regression labels need {self.num_outputs} columns, not shape {tuple(y.shape)}."
            )
        if not y.is_cuda and not bool(torch.isfinite(y).all()):
            raise ProbeError("Regression labels hold NaN or infinite values.")
        return y

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        """Which rows count: all."""
        return torch.ones_like(y[..., 0], dtype=torch.bool)

    def faulty(self, y: torch.Tensor) -> torch.Tensor:
        """Whether any label is NaN or infinite."""
        return ~torch.isfinite(y).all()

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

    def variance(self, summary: torch.Tensor) -> float:
        """Variance of the labels, mean over outputs."""
        rows, total, square = summary
        return float((square / rows - (total / rows).square()).clamp(min=0).mean())


Target: TypeAlias = "Classification | MultiLabel | Regression"


def as_targets(num_classes: int | None, targets: Target | Mapping[str, Target] | None) -> dict[str, Target]:
    """The label sets by name; a single one is called `"y"`."""
    if (num_classes is None) == (targets is None):
        raise ProbeError("say what the probes predict: either num_classes=10 or targets=..., not both.")
    if num_classes is not None:
        return {"y": Classification(num_classes)}
    named = dict(targets) if isinstance(targets, Mapping) else {"y": targets}
    if not named:
        raise ProbeError("targets={} names no label set.")
    for target in named.values():
        if not isinstance(target, (Classification, MultiLabel, Regression)):
            raise ProbeError(
                f"targets={target!r} is no target; give Classification(10), MultiLabel(5) or Regression(), "
                "or several by name."
            )
    return named  # type: ignore[return-value]  # just checked


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Over the last dimension; where that is short torch is up to thirty times faster along another one."""
    if logits.shape[-1] > _FEW:
        return F.log_softmax(logits, dim=-1)
    return F.log_softmax(logits.transpose(-1, -2).contiguous(), dim=-2).transpose(-1, -2)


def _real(y: torch.Tensor) -> torch.Tensor:
    if y.is_complex():
        raise ProbeError("labels are complex numbers; give their real and imaginary parts as two columns.")
    return y
