"""The contract of eigensolvers: what they are asked, and what they answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ..products.symmetric import SymmetricOperator
from .arguments import seeded
from .counted import Products
from .goal import Goal, Span
from .krylov_basis import check_symmetry
from .rayleigh_ritz import Block, rayleigh_ritz
from .results import MissedCheck
from .tall import Matrix, gram

__all__ = ["EigenProblem", "EigenSolution", "EigenSolver"]


@dataclass(frozen=True)
class EigenSolution:
    """What a solver has found; values and residuals as `EigenProblem.multiply` scales them.

    `EigenProblem.measured` makes one from vectors alone.

    Attributes:
        pairs: approximate eigenpairs, ascending; of these the wanted ones are taken.
        beyond: (value, residual) of what is known next to them, (m, 2); None if nothing is.
        span: from the smallest to the largest value seen.
        residuals: where they come from; see `Spectrum`.
        missed_check: what a search for missed pairs has seen.
        interrupted: whether Ctrl-C has ended the run.
        breakdown: seconds by what they were spent on.
    """

    pairs: Block
    beyond: Matrix | None = None
    span: Span = field(default_factory=Span)
    residuals: Literal["measured", "certified", "estimated"] = "measured"
    missed_check: MissedCheck | None = None
    interrupted: bool = False
    breakdown: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EigenProblem:
    """What a solver is asked.

    Attributes:
        operator: whose eigenpairs; vectors have its `vector_dtype`, on its `device`.
        multiply: the products with the rows of a tensor (k, n), as the rows of a new tensor: counted,
            checked, and divided by a power of two that brings them near 1.
        goal: how many pairs of each end, and when they count as converged.
        start: the vector to begin with, (n,) in float64 on the CPU; None for a random one.
        seed: of everything random.
    """

    operator: SymmetricOperator
    multiply: Products
    goal: Goal
    start: torch.Tensor | None
    seed: int

    @property
    def size(self) -> int:
        """n."""
        return int(self.operator.shape[0])

    def generator(self) -> torch.Generator:
        """The random stream of the seed, on the CPU, from its beginning."""
        return seeded(self.seed)

    def measured(self, vectors: Any) -> EigenSolution:
        """The best pairs in the span of these vectors, with true residuals; a product for each vector.

        Args:
            vectors: independent rows (k, n), an array or tensor; they need not be orthogonal.

        Raises:
            HessianError: if the products show that the operator is not symmetric.
        """
        columns = np.linalg.qr(torch.as_tensor(vectors).detach().cpu().numpy().T)[0]
        rows = torch.as_tensor(
            np.ascontiguousarray(columns.T), dtype=self.operator.vector_dtype, device=self.operator.device
        )
        products = self.multiply(rows)
        projected = gram(rows, products)
        scale = float(products.double().norm(dim=1).max())
        check_symmetry(float(np.abs(projected - projected.T).max()), scale, self.operator.eps)
        return EigenSolution(rayleigh_ritz(rows, products))


class EigenSolver(ABC):
    """A way to find the extreme eigenpairs of a symmetric operator from its products.

    Its members are `Lanczos()` and `Eigsh()`. A solver of your own is a subclass with a `name` and a `solve`;
    its options are its own fields. The shortest `solve` ends in `return problem.measured(vectors)`.

    Attributes:
        name: what `Spectrum.method` records.
    """

    name: ClassVar[str]

    @abstractmethod
    def solve(self, problem: EigenProblem) -> EigenSolution:
        """The pairs that are asked for, or as many as there are in reach.

        Raises:
            HessianError: if the solver cannot do what is asked.
        """
