"""Approximate eigenpairs whose products with the operator are known, hence their true residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from .tall import Matrix, combine, combine_in_place, gram, squared_norms

__all__ = ["Block", "certified", "polished", "rayleigh_ritz"]

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Block:
    """Approximate eigenpairs, ascending.

    Attributes:
        vectors: orthonormal rows X, shape (p, n).
        products: A X, as rows.
        values: float64, shape (p,).
        residuals: upper bounds of ||A x - value x||, float64, shape (p,).
        doubt: that is in them: how far the products may be from A X, in the spectral norm.
    """

    vectors: torch.Tensor
    products: torch.Tensor
    values: Matrix
    residuals: Matrix
    doubt: float = 0.0

    def only(self, which: npt.NDArray[np.int64]) -> Block:
        """The pairs at these indices."""
        return Block(
            self.vectors[which], self.products[which], self.values[which], self.residuals[which], self.doubt
        )


def rayleigh_ritz(vectors: torch.Tensor, products: torch.Tensor, doubt: float = 0.0) -> Block:
    """The best pairs in the span of the rows of `vectors`, given A times them; overwrites both tensors."""
    projected, overlaps = gram(vectors, products), gram(vectors, vectors)
    # The rows are orthonormal but for rounding; with their true overlaps the result is so again.
    values, coefficients = scipy.linalg.eigh((projected + projected.T) / 2, (overlaps + overlaps.T) / 2)
    combine_in_place(vectors, coefficients)
    combine_in_place(products, coefficients)
    residuals = np.sqrt(squared_norms(products, vectors, values)) + doubt
    return Block(vectors, products, values, residuals, doubt)


def certified(
    block: Block,
    multiply: Callable[[torch.Tensor], torch.Tensor],
    generator: torch.Generator,
    failure: float = 0.01,
) -> Block:
    """The block with a bound on the error of its products, from two products with random combinations.

    Let E = A X - products, (p, n), and g a vector of p independent normal numbers. A (g X) is one product,
    and what it differs by from g times `products` is g E, whose squared norm is g E E^T g >= ||E||^2 z^2 with
    one normal z = g . u, u being E's first left singular vector. Two such sums have a z_1^2 + z_2^2 that is
    below 2 x with the probability 1 - exp(-x) <= x. So with probability 1 - `failure`, over the choice of the
    g,

        ||E||^2 <= (||g_1 E||^2 + ||g_2 E||^2) / (2 failure),

    and no true residual is more than ||E|| above the one by `products`. For 0.01 that is seven times what is
    seen: rounding where `products` came from a Lanczos process that went well.
    """
    weights = torch.randn(2, len(block.values), generator=generator, dtype=torch.float64).numpy()
    lengths = np.linalg.norm(weights, axis=1)
    shares = (weights / lengths[:, None]).T
    seen = multiply(combine(block.vectors, shares))
    errors = lengths**2 * squared_norms(seen, combine(block.products, shares), np.ones(2))
    doubt = float(np.sqrt(errors.sum() / (2 * failure)))
    return replace(block, residuals=block.residuals - block.doubt + doubt, doubt=doubt)


def polished(
    block: Block,
    wanted: Callable[[int], npt.NDArray[np.int64]],
    thresholds: Callable[[Matrix], Matrix],
    multiply: Callable[[torch.Tensor], torch.Tensor],
    left: Callable[[], float],
) -> Block:
    """Bring the residuals of the wanted pairs below their thresholds, as far as a few products can.

    Each round adds the residual vectors of the pairs that need it to the span: steepest descent, enough for
    pairs that are nearly there. It ends when a round no longer helps: what is left then is noise in the
    products, and is reported as it is.

    Args:
        wanted: which of so many pairs.
        thresholds: of pairs with these values.
        left: how many products there may still be.
    """
    worst = np.inf
    while True:
        indices = wanted(len(block.values))
        excess = block.residuals[indices] / np.maximum(thresholds(block.values)[indices], _TINY)
        above = indices[excess > 1]
        before, worst = worst, float(excess.max())
        if not len(above) or worst > 0.7 * before or left() < len(above):
            return block
        values = torch.as_tensor(block.values[above], device=block.vectors.device, dtype=block.vectors.dtype)
        directions = block.products[above] - values[:, None] * block.vectors[above]
        # Residuals of Rayleigh-Ritz pairs are orthogonal to all the vectors already.
        rows = torch.linalg.qr(directions.T)[0].T.contiguous()
        larger = rayleigh_ritz(
            torch.cat([block.vectors, rows]), torch.cat([block.products, multiply(rows)]), block.doubt
        )
        keep = np.flatnonzero(larger.residuals <= thresholds(larger.values))
        block = larger.only(np.union1d(keep, wanted(len(larger.values))))
