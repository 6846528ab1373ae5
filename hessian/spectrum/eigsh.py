"""The plain way: scipy's `eigsh`, once for each end. The yardstick of our own solver, and its fallback."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from thermoscope.errors import HessianError

from .arguments import basis_capacity
from .solver import EigenProblem, EigenSolution, EigenSolver
from .tall import Matrix

__all__ = ["Eigsh"]


@dataclass(frozen=True)
class Eigsh(EigenSolver):
    """ARPACK's implicitly restarted Lanczos by scipy's `eigsh`, once for each end; takes more products.

    ARPACK's tolerance is a share of each eigenvalue's size, ours one of the spectrum's width; if the spectrum
    reaches zero or beyond, as a Hessian's does, ARPACK's is the tighter one. If ARPACK gives up, the pairs
    are those that it has. Ctrl-C loses them.

    Args:
        max_basis: Lanczos vectors kept in memory, `ncv`; by default scipy's choice.
    """

    name = "eigsh"

    max_basis: int | None = None

    def solve(self, problem: EigenProblem) -> EigenSolution:
        """The wanted pairs by two calls, with true residuals.

        Raises:
            HessianError: if ARPACK fails, or `max_basis` leaves no room to iterate.
        """
        operator, goal, size = problem.operator, problem.goal, problem.size
        basis_capacity(operator, goal.wanted, self.max_basis)
        # ARPACK wants more vectors than pairs, so it cannot find (nearly) all of them.
        if size <= goal.wanted + 2:
            return problem.measured(np.eye(size))

        def matmat(columns: Matrix) -> Matrix:
            rows = torch.as_tensor(
                np.ascontiguousarray(columns.T), dtype=operator.vector_dtype, device=operator.device
            )
            return np.asarray(problem.multiply(rows).cpu().numpy().T)

        counted = LinearOperator(
            operator.shape, lambda x: matmat(x.reshape(-1, 1))[:, 0], matmat=matmat, dtype=operator.dtype
        )
        start = problem.start
        if start is None:
            start = torch.randn(size, generator=problem.generator(), dtype=torch.float64)
        found = []
        for count, which in ((goal.largest, "LA"), (goal.smallest, "SA")):
            # At an end where nothing is wanted, a rough value: the width is needed to judge the residuals.
            accuracy = {"k": count, "tol": goal.tol} if count else {"k": 1, "tol": 0.01}
            try:
                v0 = start.numpy().astype(operator.dtype)
                _, vectors = eigsh(counted, which=which, v0=v0, ncv=self.max_basis, **accuracy)
            except ArpackNoConvergence as error:
                vectors = error.eigenvectors
            except ArpackError as error:
                raise HessianError(f"eigsh failed ({error}); solver=Lanczos() may not.") from error
            found.append(vectors.T)
        # If an eigenvalue is at both ends, its vectors from the two calls need not be orthogonal.
        return problem.measured(np.concatenate(found))
