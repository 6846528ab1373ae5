"""The extreme eigenpairs of a symmetric operator, both ends at once, with proof of what they are."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from thermoscope.errors import HessianError

from ..products.symmetric import as_operator
from .angles import angles
from .arguments import checked_goal, seeded, start_vector
from .counted import Products
from .lanczos import Lanczos
from .results import Eigenpair, MissedCheck, Spectrum
from .solver import EigenProblem, EigenSolution, EigenSolver

__all__ = ["extreme_eigenpairs"]


def extreme_eigenpairs(
    operator: object,
    largest: int = 1,
    smallest: int = 1,
    *,
    tol: float = 1e-3,
    rtol: float = 0.1,
    start: object = None,
    seed: int = 0,
    solver: EigenSolver = Lanczos(),
    progress: bool = False,
) -> Spectrum:
    """LA(largest) and SA(smallest) of a symmetric operator.

    The same operator, request and seed give the same digits: nothing here depends on time. A vector's sign is
    such that its largest component is positive; `Spectrum.downhill` turns vectors by a gradient.

    Args:
        operator: a `SymmetricOperator`, or a real symmetric array, tensor, sparse matrix or scipy
            `LinearOperator`.
        largest: how many of the largest eigenvalues; 0 for none.
        smallest: how many of the smallest (the most negative ones); 0 for none.
        tol: a pair has converged when ||A v - lambda v|| <= tol x (largest - smallest eigenvalue), and
        rtol: when it is no more than rtol x |lambda| either, unless lambda is zero as far as tol can tell: an
            end that is small beside the other is known by its own measure too. `inf` asks for tol only.
        start: begin with the sum of these vectors: the `Spectrum` of another snapshot, eigenpairs, or vectors
            as rows. It saves little, even if they are close (4 to 12 of 150 products for a LeNet), since the
            Krylov space has to grow all the same; and the digits then depend on them.
        seed: of the random start vectors; the global random streams are not touched.
        solver: `Lanczos()`, `Eigsh()`, or one of your own; each has options of its own, such as a budget of
            products or a file to continue from.
        progress: show a progress bar.

    Raises:
        HessianError: if the request is impossible; or if the operator is not symmetric, another one each
            time, or its products are not finite, not real or of another shape.
    """
    began = time.monotonic()
    operator = as_operator(operator)
    goal = checked_goal(operator, largest, smallest, tol, rtol)
    if not isinstance(solver, EigenSolver):
        raise HessianError(f"solver={solver!r} is not a solver; give Lanczos(), Eigsh(), or one of your own.")
    seeded(seed)
    with Products(operator, None, progress) as products:
        problem = EigenProblem(operator, products, goal, start_vector(start, operator), seed)
        solution = solver.solve(problem)
        return _spectrum(problem, solution, solver.name, time.monotonic() - began)


def _spectrum(problem: EigenProblem, solution: EigenSolution, method: str, seconds: float) -> Spectrum:
    """The wanted pairs of a solution as the operator has them, each judged."""
    goal, unit, block = problem.goal, problem.multiply.unit or 1.0, solution.pairs
    span, check = solution.span, solution.missed_check
    span.cover(block.values)
    bounds = angles(block.values, block.residuals, solution.beyond)
    converged = block.residuals <= goal.thresholds(block.values, span)
    rows = block.vectors.cpu().numpy()
    pairs = [
        Eigenpair(
            float(block.values[i]) * unit,
            rows[i] if rows[i, np.abs(rows[i]).argmax()] > 0 else -rows[i],
            float(block.residuals[i]) * unit,
            bool(converged[i]),
            bounds[i],
        )
        for i in goal.ends(len(block.values))
    ]
    count = min(goal.largest, len(pairs))
    return Spectrum(
        largest=tuple(pairs[len(pairs) - count :][::-1]),
        smallest=tuple(pairs[: len(pairs) - count]),
        width=span.width * unit,
        tol=goal.tol,
        products=problem.multiply.count,
        seconds=seconds,
        method=method,
        interrupted=solution.interrupted,
        missed_check=check and _in_units(check, unit),
        layout=dict(problem.operator.layout),
        residuals=solution.residuals,
        mode=problem.operator.mode,
        breakdown=solution.breakdown,
    )


def _in_units(check: MissedCheck, unit: float) -> MissedCheck:
    return replace(check, largest=check.largest * unit, smallest=check.smallest * unit)
