"""Means over a data set with honest standard errors, whatever the batches."""

from __future__ import annotations

import torch

from .intervals import wilson

__all__ = ["Tally"]


class Tally:
    """Sums over clusters (examples) of per-row values, from which means and standard errors follow.

    With m the mean over all rows, s_i the sum and n_i the number of rows of example i, the squared
    standard error is sum (s_i - m n_i)^2 / (sum n_i)^2: the ratio estimator, which for one row per
    example is the usual one and does not take the pixels of one image for independent.

    Values may carry leading dimensions; sums are float64. A process that adds nothing has to say their shape
    if its sums are to be added to others'.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        self.rows = torch.zeros((), dtype=torch.float64, device="cpu")
        self._examples = torch.zeros((), dtype=torch.float64, device="cpu")
        self._rows_square = torch.zeros((), dtype=torch.float64, device="cpu")
        self._sums: torch.Tensor | None = None  # (3, ...): of s, s^2, s n
        if shape is not None:
            self._sums = torch.zeros((3, *shape), dtype=torch.float64, device="cpu")

    def add(self, values: torch.Tensor, counted: torch.Tensor) -> None:
        """Take in values (..., B, rows per example); `counted` (B, rows per example): which rows count."""
        n = counted.sum(-1, dtype=torch.float64)
        s = values.masked_fill(~counted, 0).sum(-1, dtype=torch.float64)
        sums = torch.stack([s.sum(-1), s.square().sum(-1), (s * n).sum(-1)])
        self.rows = self.rows.to(n.device) + n.sum()
        self._examples = self._examples.to(n.device) + (n > 0).sum()
        self._rows_square = self._rows_square.to(n.device) + n.square().sum()
        self._sums = sums if self._sums is None else self._sums.to(sums.device) + sums

    def reduce(self, group: torch.distributed.ProcessGroup) -> None:
        """Sum over the processes of a group."""
        assert self._sums is not None
        for part in (self.rows, self._examples, self._rows_square, self._sums):
            torch.distributed.all_reduce(part, group=group)

    def interval(self, place: int | tuple[int, ...] = ()) -> tuple[float, float]:
        """The 95% interval of the mean of values between 0 and 1, at this place in their leading shape."""
        mean, se = (float(part[place]) for part in self.means())
        return wilson(mean, se, int(self._examples))

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard errors, float64 on the CPU, of the values' leading shape; NaN without rows."""
        assert self._sums is not None
        n, n_square = self.rows.cpu(), self._rows_square.cpu()
        total, square, cross = self._sums.cpu()
        mean = total / n
        variance = (square - 2 * mean * cross + mean.square() * n_square).clamp(min=0)
        return mean, variance.sqrt() / n
