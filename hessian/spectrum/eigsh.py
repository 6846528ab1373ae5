"""The plain way: scipy's `eigsh`, once for each end. The yardstick of our own solver, and its fallback."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator
from .counted import Products
from .goal import Goal
from .lanczos import check_symmetry
from .rayleigh_ritz import Block, rayleigh_ritz
from .tall import Matrix, gram

__all__ = ["eigsh_block"]


def eigsh_block(
    products: Products, operator: SymmetricOperator, goal: Goal, start: torch.Tensor, max_basis: int | None
) -> Block:
    """The wanted pairs by two calls, or as many as ARPACK has; with true residuals.

    ARPACK's tolerance is a share of each eigenvalue's size, ours one of the spectrum's width; if the spectrum
    reaches zero or beyond, as a Hessian's does, ARPACK's is the tighter one.
    """
    size = int(operator.shape[0])

    def tensor(rows: npt.NDArray[Any]) -> torch.Tensor:
        return torch.as_tensor(
            np.ascontiguousarray(rows), dtype=operator.vector_dtype, device=operator.device
        )

    def matmat(columns: Matrix) -> Matrix:
        return np.asarray(products(tensor(columns.T)).cpu().numpy().T)

    # ARPACK wants more vectors than pairs, so it cannot find (nearly) all of them.
    if size <= goal.wanted + 2:
        rows = tensor(np.eye(size))
        return rayleigh_ritz(rows, products(rows))
    counted = LinearOperator(
        operator.shape, lambda x: matmat(x.reshape(-1, 1))[:, 0], matmat=matmat, dtype=operator.dtype
    )
    found = []
    for count, which in ((goal.largest, "LA"), (goal.smallest, "SA")):
        # At an end where nothing is wanted, a rough value: the width is needed to judge the residuals.
        accuracy = {"k": count, "tol": goal.tol} if count else {"k": 1, "tol": 0.01}
        try:
            v0 = start.numpy().astype(operator.dtype)
            _, vectors = eigsh(counted, which=which, v0=v0, ncv=max_basis, **accuracy)
        except ArpackNoConvergence as error:
            vectors = error.eigenvectors
        except ArpackError as error:
            raise HessianError(f'eigsh failed ({error}); method="lanczos" may not.') from error
        found.append(vectors.T)
    # If an eigenvalue is at both ends, its vectors from the two calls need not be orthogonal.
    stack = np.linalg.qr(np.concatenate(found).T)[0].T
    rows = tensor(stack)
    images = products(rows)
    projected = gram(rows, images)
    scale = float(images.double().norm(dim=1).max())
    check_symmetry(float(np.abs(projected - projected.T).max()), scale, operator.eps)
    return rayleigh_ritz(rows, images)
