"""What is asked of the eigen-solvers, checked; and start vectors in the forms in which people have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator
from .goal import Goal
from .results import Eigenpair, Spectrum

__all__ = ["CERTIFICATE", "basis_capacity", "checked_goal", "product_limit", "seeded", "start_vector"]

CERTIFICATE = 2  # products that certify all residuals together

# By default the basis takes no more memory than this, and no more vectors than help: all of a small space.
_MEMORY = 2 << 30
_VECTORS = 160
_SMALL = 400


def checked_goal(
    operator: SymmetricOperator,
    largest: int,
    smallest: int,
    tol: float,
    rtol: float,
) -> Goal:
    """The goal, if it can be reached.

    Raises:
        HessianError: if not.
    """
    size = operator.shape[0]
    for name, count in (("largest", largest), ("smallest", smallest)):
        if not isinstance(count, (int, np.integer)):
            raise HessianError(f"{name}={count!r} is no whole number of eigenpairs.")
    largest, smallest = int(largest), int(smallest)
    wanted = largest + smallest
    if largest < 0 or smallest < 0 or wanted == 0:
        raise HessianError(
            f"largest={largest}, smallest={smallest} asks for no eigenpair; give how many of the largest and "
            f"of the smallest eigenvalues are wanted, at least one in all."
        )
    if wanted > size:
        raise HessianError(
            f"asked for {wanted} eigenpairs of an operator of size {size}; ask for at most {size}."
        )
    if not 0 < tol < 1:
        raise HessianError(f"tol={tol} is a share of the spectrum's width; it has to lie between 0 and 1.")
    if not rtol > 0:
        raise HessianError(f"rtol={rtol} is a share of an eigenvalue; it has to be positive (or inf).")
    return Goal(largest, smallest, tol, min(rtol, 1 / operator.eps), 10 * operator.eps)


def product_limit(goal: Goal, max_products: int | None) -> int:
    """How many products there may be: by default so many that only a hopeless search meets the limit.

    Raises:
        HessianError: for a budget that is too small for the goal.
    """
    wanted = goal.wanted
    if max_products is not None and max_products < wanted + CERTIFICATE:
        raise HessianError(
            f"max_products={max_products} is too few for {wanted} eigenpairs: every pair takes a product to "
            f"be found, and all together {CERTIFICATE} for their residuals; allow at least "
            f"{wanted + CERTIFICATE}."
        )
    return 1000 + 100 * wanted if max_products is None else max_products


def basis_capacity(operator: SymmetricOperator, wanted: int, max_basis: int | None) -> int:
    """How many vectors the Lanczos basis may have.

    The more, the fewer products; the decomposition of the projected matrix gets slow beyond a few hundred.

    Raises:
        HessianError: if `max_basis` leaves no room to iterate.
    """
    size = int(operator.shape[0])
    if max_basis is None:
        affordable = _MEMORY // (size * torch.finfo(operator.vector_dtype).bits // 8)
        least = wanted + wanted // 2 + 8
        useful = size if size <= _SMALL else max(_VECTORS, 3 * wanted + 40)
        max_basis = max(least, min(affordable, useful))
    elif max_basis < min(wanted + 3, size):
        raise HessianError(
            f"max_basis={max_basis} leaves no room to iterate on {wanted} eigenpairs; allow at least "
            f"{wanted + 3}, better {2 * wanted + 20}."
        )
    return min(max_basis, size)


def seeded(seed: int) -> torch.Generator:
    """A random stream of one's own.

    Raises:
        HessianError: for a seed that is none.
    """
    try:
        return torch.Generator().manual_seed(seed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise HessianError(f"seed={seed!r} is not a seed; give a whole number of up to 63 bits.") from error


def start_vector(start: object, operator: SymmetricOperator) -> torch.Tensor | None:
    """The sum of the unit vectors along those given, in float64 on the CPU; None for none.

    `start`: a Spectrum, eigenpairs, or vectors: a sequence of them, the rows of an array or tensor, or one.

    Raises:
        HessianError: if they are not vectors of the operator.
    """
    if start is None:
        return None
    total = torch.zeros(operator.shape[0], dtype=torch.float64)
    for item in _vectors(start):
        vector = torch.as_tensor(item).detach().cpu().double()
        if vector.shape != total.shape:
            raise HessianError(
                f"a start vector has shape {tuple(vector.shape)}; this operator needs {tuple(total.shape)}."
            )
        norm = float(vector.norm())
        if not 0 < norm < float("inf"):
            raise HessianError("a start vector is zero or not finite; leave it out.")
        total += vector / norm
    if not float(total.norm()) > 1e-6:
        raise HessianError("the start vectors cancel each other, or there are none; leave `start` out.")
    return total


def _vectors(start: Any) -> Iterable[Any]:
    if isinstance(start, Spectrum):
        return [pair.vector for pair in start.pairs]
    if isinstance(start, Eigenpair):
        return [start.vector]
    if isinstance(start, (np.ndarray, torch.Tensor)):
        return start[None] if start.ndim == 1 else start
    try:
        return [item.vector if isinstance(item, Eigenpair) else torch.as_tensor(item) for item in start]
    except (TypeError, ValueError) as error:
        raise HessianError(
            f"start={start!r} is not a start; give a spectrum, eigenpairs, or vectors as rows."
        ) from error
