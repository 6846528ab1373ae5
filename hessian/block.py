"""Approximate eigenpairs whose products with the operator are known, hence their true residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from .rows import Matrix, combine_in_place, gram, squared_norms

__all__ = ["Block", "polished", "rayleigh_ritz"]


@dataclass(frozen=True)
class Block:
    """Approximate eigenpairs, ascending.

    Attributes:
        vectors: orthonormal rows X, shape (p, n).
        products: A X, as rows.
        values: float64, shape (p,).
        residuals: ||A x - value x||, float64, shape (p,).
    """

    vectors: torch.Tensor
    products: torch.Tensor
    values: Matrix
    residuals: Matrix


def rayleigh_ritz(vectors: torch.Tensor, products: torch.Tensor) -> Block:
    """The best pairs in the span of the rows of `vectors`, given A times them; overwrites both tensors."""
    projected, overlaps = gram(vectors, products), gram(vectors, vectors)
    # The rows are orthonormal but for rounding; with their true overlaps the result is so again.
    values, coefficients = scipy.linalg.eigh((projected + projected.T) / 2, (overlaps + overlaps.T) / 2)
    combine_in_place(vectors, coefficients)
    combine_in_place(products, coefficients)
    residuals = np.sqrt(squared_norms(products, vectors, values))
    return Block(vectors, products, values, residuals)


def polished(
    block: Block,
    wanted: Callable[[int], npt.NDArray[np.int64]],
    threshold: float,
    multiply: Callable[[torch.Tensor], torch.Tensor],
    left: Callable[[], float],
) -> Block:
    """Bring the residuals of the wanted pairs below `threshold`, as far as a few products can.

    Each round adds the residual vectors of the pairs that need it to the span: steepest descent, enough for
    pairs that are nearly there. It ends when a round no longer helps: what is left then is noise in the
    products, and is reported as it is.

    Args:
        wanted: which of so many pairs.
        left: how many products there may still be.
    """
    worst = np.inf
    while True:
        indices = wanted(len(block.values))
        above = indices[block.residuals[indices] > threshold]
        before, worst = worst, float(block.residuals[indices].max())
        if not len(above) or worst > 0.7 * before or left() < len(above):
            return block
        values = torch.as_tensor(block.values[above], device=block.vectors.device, dtype=block.vectors.dtype)
        directions = block.products[above] - values[:, None] * block.vectors[above]
        # Residuals of Rayleigh-Ritz pairs are orthogonal to all the vectors already.
        rows = torch.linalg.qr(directions.T)[0].T.contiguous()
        larger = rayleigh_ritz(torch.cat([block.vectors, rows]), torch.cat([block.products, multiply(rows)]))
        keep = np.flatnonzero(larger.residuals <= threshold)
        keep = np.union1d(keep, wanted(len(larger.values)))
        block = Block(
            larger.vectors[keep], larger.products[keep], larger.values[keep], larger.residuals[keep]
        )
