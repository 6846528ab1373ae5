"""L2-regularised softmax regression on the rows of one layer: its objective, gradient and certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .certificate import duality_gap
from .features import Rows

__all__ = ["Evaluation", "Softmax"]


@dataclass(frozen=True)
class Evaluation:
    """What one pass over the rows says about a point (W, b).

    Attributes:
        value: F(W, b), in nats.
        gradient: of F, float64, shape (C, size + 1); the bias is the last column.
        gap: an upper bound on F(W, b) - min F.
        bias_hessian: of F in b, shape (C, C), where it was asked for.
    """

    value: float
    gradient: torch.Tensor
    gap: float
    bias_hessian: torch.Tensor | None


class Softmax:
    """F(W, b) = 1/n sum_i CE(y_i, softmax(W z_i + b)) + l2/2 ||W||^2 for standardised rows z_i.

    A point is a matrix theta = [W b], float64, shape (C, size + 1).

    Args:
        rows: the standardised features.
        y: class of each row, int64 (n,), on the rows' device; every one of the C classes occurs.
        num_classes: C.
    """

    def __init__(self, rows: Rows, y: torch.Tensor, num_classes: int):
        self.rows, self._y, self.num_classes = rows, y, num_classes
        self.frequency = torch.bincount(y, minlength=num_classes).double() / rows.n

    def start(self) -> torch.Tensor:
        """The best point with W = 0: answers with the classes' frequencies."""
        size = (self.num_classes, self.rows.size + 1)
        theta = torch.zeros(size, dtype=torch.float64, device=self.frequency.device)
        theta[:, -1] = self.frequency.log()
        return theta

    def evaluate(
        self, theta: torch.Tensor, l2: float, dtype: torch.dtype, *, bias_hessian: bool = False
    ) -> Evaluation:
        """One pass. Products are of the given precision, sums over blocks of rows float64.

        Classes are the rows of all that is computed: of few classes, products of this shape are the fastest.
        """
        weight, bias = theta[:, :-1].to(dtype), theta[:, -1:].to(dtype)
        loss = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(theta)
        square = torch.zeros(len(theta), len(theta), dtype=torch.float64, device=theta.device)
        for block, z in self.rows.blocks(dtype):
            y = self._y[None, block]
            log_p = torch.addmm(bias, weight, z.T)
            log_p -= log_p.logsumexp(0)
            loss -= log_p.gather(0, y).sum(dtype=torch.float64)
            p = log_p.exp_()
            if bias_hessian:
                square += p @ p.T
            p.scatter_add_(0, y, torch.full_like(y, -1, dtype=dtype))
            gradient[:, :-1] += p @ z
            gradient[:, -1] += p.sum(1, dtype=torch.float64)
        n = self.rows.n
        gradient /= n
        gap = duality_gap(float(loss) / n, gradient, theta, l2, self.frequency)
        value = float(loss) / n + l2 / 2 * float(theta[:, :-1].square().sum())
        mean = gradient[:, -1] + self.frequency
        gradient[:, :-1] += l2 * theta[:, :-1]
        return Evaluation(value, gradient, gap, mean.diag() - square / n if bias_hessian else None)
