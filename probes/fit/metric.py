"""Coordinates in which softmax regression is well conditioned."""

from __future__ import annotations

from itertools import pairwise

import torch

from .features import Rows
from .softmax import Softmax

__all__ = ["Gram", "Metric"]

_PANEL = 256  # columns computed together: only panels on and above the diagonal are
_SOUND = 1e-5  # l2 over the Gram matrix's norm above which float32 tells it from rounding
_ROWS = 8  # times the features of a block: rows that its Gram matrix rests on


class Gram:
    """Z^T Z / n of standardised rows, in blocks along the diagonal where features are very many.

    It rests on evenly spaced rows, eight times as many as a block has features if there are more. Nothing
    but the speed of a fit depends on it.

    Args:
        rows: the standardised features.
        widest: features of a block at most.
    """

    def __init__(self, rows: Rows, widest: int):
        count = -(-rows.size // widest)
        edges = [rows.size * i // count for i in range(count + 1)]
        self.blocks = [slice(a, b) for a, b in pairwise(edges)]
        self.grams: list[torch.Tensor] = []
        stride, n = max(rows.n // (_ROWS * min(rows.size, widest)), 1), 0
        for block, z in rows.blocks(torch.float32):
            z = z[-block.start % stride :: stride]
            n += len(z)
            self._add(z)
        for gram in self.grams:
            gram.div_(n)
            gram.copy_(gram.triu() + gram.triu(1).T)

    def _add(self, z: torch.Tensor) -> None:
        if not self.grams:
            sizes = [block.stop - block.start for block in self.blocks]
            self.grams = [torch.zeros(size, size, device=z.device) for size in sizes]
        for block, gram in zip(self.blocks, self.grams, strict=True):
            part = z[:, block]
            for a in range(0, len(gram), _PANEL):
                gram[a : a + _PANEL, a:].addmm_(part[:, a : a + _PANEL].T, part[:, a:])


class Metric:
    """The change of variables by a Cholesky factor of the Hessian where W = 0, taken for w Z^T Z / n + l2.

    w is the mean of f (1 - f) over the classes' frequencies f: for equally frequent classes the Hessian
    there is exactly that, and in between the optimum and there it is the better for being the same for all.
    Systems are solved for columns: for a few rows LAPACK takes four times as long.
    """

    def __init__(self, problem: Softmax, gram: Gram, l2: float):
        frequency = problem.frequency
        w = float((frequency * (1 - frequency)).mean())
        self._blocks = gram.blocks
        self._factors = [_factor(w * matrix, l2) for matrix in gram.grams]
        self._bias = frequency.sqrt()

    def covariant(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient in the new coordinates, float32, of the same shape (C, size + 1)."""
        return self._solve(gradient.float(), transposed=False)

    def contravariant(self, step: torch.Tensor) -> torch.Tensor:
        """A step in the new coordinates as a step in theta, float64."""
        return self._solve(step.clone(), transposed=True).double()

    def _solve(self, out: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        """Systems of the factors or their transposes, in place."""
        for block, factor in zip(self._blocks, self._factors, strict=True):
            columns = out[:, block].T.contiguous()
            matrix = factor.T if transposed else factor
            out[:, block] = torch.linalg.solve_triangular(matrix, columns, upper=transposed).T
        out[:, -1] /= self._bias
        return out


def _factor(hessian: torch.Tensor, l2: float) -> torch.Tensor:
    """The Cholesky factor of a matrix plus l2, float32; if need be computed in float64, in twice the time."""
    norm = float(hessian.norm())
    if l2 > _SOUND * norm:
        hessian.diagonal().add_(l2)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return torch.as_tensor(factor)
        hessian.diagonal().sub_(l2)
    hessian = hessian.double()
    hessian.diagonal().add_(l2 + 1e-7 * norm)  # the rounding of the float32 Gram matrix: keeps it definite
    return torch.as_tensor(torch.linalg.cholesky(hessian).float())
