"""Means over a data set with honest standard errors, whatever the batches."""

from __future__ import annotations

import torch

__all__ = ["Tally"]


class Tally:
    """Sums over clusters (examples) of per-row values, from which means and standard errors follow.

    With m the mean over all rows, s_i the sum and n_i the number of rows of example i, the squared
    standard error is sum (s_i - m n_i)^2 / (sum n_i)^2: the ratio estimator, which for one row per
    example is the usual one and does not take the pixels of one image for independent.

    Values may carry leading dimensions; sums are float64.
    """

    def __init__(self) -> None:
        self.rows = torch.zeros((), dtype=torch.float64, device="cpu")
        self._rows_square = torch.zeros((), dtype=torch.float64, device="cpu")
        self._sums: torch.Tensor | None = None  # (3, ...): of s, s^2, s n

    def add(self, values: torch.Tensor, counted: torch.Tensor) -> None:
        """Take in values (..., B, rows per example); `counted` (B, rows per example): which rows count."""
        n = counted.sum(-1, dtype=torch.float64)
        s = values.masked_fill(~counted, 0).sum(-1, dtype=torch.float64)
        sums = torch.stack([s.sum(-1), s.square().sum(-1), (s * n).sum(-1)])
        self.rows = self.rows.to(n.device) + n.sum()
        self._rows_square = self._rows_square.to(n.device) + n.square().sum()
        self._sums = sums if self._sums is None else self._sums + sums

    def reduce(self, group: torch.distributed.ProcessGroup) -> None:
        """Sum over the processes of a group."""
        assert self._sums is not None
        for part in (self.rows, self._rows_square, self._sums):
            torch.distributed.all_reduce(part, group=group)

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard errors, float64 on the CPU, of the values' leading shape; NaN without rows."""
        assert self._sums is not None
        n, n_square = self.rows.cpu(), self._rows_square.cpu()
        total, square, cross = self._sums.cpu()
        mean = total / n
        variance = (square - 2 * mean * cross + mean.square() * n_square).clamp(min=0)
        return mean, variance.sqrt() / n
