"""A few steps of Lanczos, for the most that a handful of products can say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from thermoscope.errors import HessianError

from ..spectrum.tall import inner, subtract

__all__ = ["Ends", "short_lanczos"]

# A Krylov space ends where what is left of a new direction is rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Ends:
    """Both ends of a Krylov space: smallest and largest Ritz value, and the residuals ||A v - value v||."""

    values: tuple[float, float]
    vectors: tuple[torch.Tensor, torch.Tensor]
    residuals: tuple[float, float]
    products: int


def short_lanczos(
    multiply: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, products: int
) -> Ends:
    """Lanczos with full reorthogonalisation, from a start vector (n,)."""
    if not float(start.norm()) > 0:  # a stationary point: any direction is as good as another
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(len(start), generator=generator).to(start)
    products = min(products, len(start))
    basis = start.new_empty(products, len(start))
    basis[0] = start / start.norm()
    projected = np.zeros((products, products))
    for j in range(products):
        known, image = basis[: j + 1], multiply(basis[j])
        size = float(image.norm())
        if not math.isfinite(size):
            raise HessianError(
                "a product with the Hessian is not finite; look for overflow, or for an operation whose "
                "second derivative is (a square root at zero, say). The estimates stay as they were."
            )
        overlaps = inner(known, image)
        projected[: j + 1, j] = projected[j, : j + 1] = overlaps.cpu().numpy()
        # Once is enough for so few: what rounding leaves of the known directions has no time to grow.
        _, square = subtract(image, known, overlaps)
        left = math.sqrt(float(square))
        if j + 1 == products or not left > _ROUNDING * size:
            break
        basis[j + 1] = image / left
    # By torch, for the reason in `KrylovBasis.ritz`.
    pairs = torch.linalg.eigh(torch.as_tensor(projected[: j + 1, : j + 1]))
    values, coefficients = (part.numpy() for part in pairs)
    vectors = torch.as_tensor(coefficients[:, [0, -1]].T).to(basis) @ basis[: j + 1]
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    # A v - value v is what was left of the last product, times v's last coefficient.
    residuals = left * np.abs(coefficients[-1])
    return Ends(
        (float(values[0]), float(values[-1])),
        (vectors[0], vectors[1]),
        (float(residuals[0]), float(residuals[-1])),
        j + 1,
    )
