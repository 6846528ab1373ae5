"""The contract of a target: what a probe predicts, with its loss, the loss's gradient and its errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from thermoscope.errors import ProbeError

__all__ = ["Target", "real_labels"]


@dataclass(frozen=True)
class Target(ABC):
    """Base class of targets; `targets=` takes an instance of any subclass, your own too.

    A subclass is a frozen dataclass and defines `width`, `check`, `loss_and_gradient` and `measure`. Shapes
    are given with G for the probes that are computed together, n for rows (examples, or positions) and c for
    `width`.

    Attributes:
        label_dims: dimensions of one row's label: 0 for a number, 1 for a vector of numbers.
        has_units: labels are real vectors of `width` numbers, of which units and origin do not matter.
            Probes then learn labels that are shifted and scaled as standardises the first batch, so that one
            learning rate suits all units, and are measured in the labels' own. `summary` is given labels
            from which a constant was taken.
    """

    label_dims: ClassVar[int] = 1
    has_units: ClassVar[bool] = False

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs of the probe."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `measure` gives, in order.

        `"loss"`, and `"error"` and `"top5_error"` if there are such: fractions between 0 and 1, whose
        intervals are Wilson's. A target without an `"error"` of rows defines `error`.
        """
        return ("loss", "error")

    @abstractmethod
    def check(self, y: torch.Tensor) -> torch.Tensor:
        """Labels (..., *label) in the dtype and shape that the other methods want.

        Raises:
            ProbeError: for what is not a label (on a GPU: where that costs no waiting; see `faulty`).
        """

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        """Which rows count: bool, shape of `y` without the dimensions of a label. All, if not overridden."""
        return torch.ones(y.shape[: y.ndim - self.label_dims], dtype=torch.bool, device=y.device)

    def faulty(self, y: torch.Tensor) -> torch.Tensor:
        """Whether anything in `y` is not a label, as a 0-d bool tensor, without waiting for a GPU.

        NaN and infinite numbers, if not overridden.
        """
        return ~torch.isfinite(y).all()

    @abstractmethod
    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per-row loss (G, n) and its gradient in the outputs (G, n, c), which the caller may overwrite.

        Args:
            logits: the probes' outputs (G, n, c), float32.
            y: labels (n, *label); rows that do not count are among them and need finite values.
        """

    @abstractmethod
    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Per-row metrics, shape (metrics, G, n), of outputs (G, n, c) and labels (n, *label)."""

    def summary(self, y: torch.Tensor) -> torch.Tensor:
        """Statistics of labels (n, *label) for `error` and `majority_error`, which add up over batches.

        Float64, of one shape. None are kept, if not overridden.
        """
        return torch.zeros(1, dtype=torch.float64, device=y.device)

    def majority_error(self, summary: torch.Tensor) -> float:
        """Error of the best answer that is always the same; NaN, if not overridden."""
        return math.nan

    def error(self, found: Mapping[str, tuple[float, float]], summary: torch.Tensor) -> tuple[float, float]:
        """The error and its standard error, from those of each metric and the summary of all labels."""
        if "error" not in found:
            raise ProbeError(
                f"{type(self).__name__} does not say what its error is; name an 'error' in its metrics, or "
                "define its method error."
            )
        return found["error"]

    def model_errors(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
        """Which answers of the probed model itself are wrong: float64 (B,), 0 or 1.

        None, as it is if not overridden, where its output does not answer what the probes are asked.
        """
        return None

    def shape_hint(self, given: tuple[int, ...]) -> str | None:
        """What is wrong with labels (B, *given) for probes with one row per example, where it is plain."""
        return None


def real_labels(y: torch.Tensor) -> torch.Tensor:
    """The labels.

    Raises:
        ProbeError: for complex numbers.
    """
    if y.is_complex():
        raise ProbeError("labels are complex numbers; give their real and imaginary parts as two columns.")
    return y
