"""A curvature matrix as an operator over the whole data."""

from __future__ import annotations

from typing import Any

import torch

from thermoscope.errors import HessianError

from ..empirical_risk.data_pass import Passes
from ..empirical_risk.parameters import Tensors, split
from .choose import ProductModes
from .matrix import LocalLoss, Multiply
from .mode import ProductMode
from .symmetric import SymmetricOperator

__all__ = ["CurvatureOperator"]


class CurvatureOperator(SymmetricOperator):
    """A curvature matrix of a `Loss`, at the weights that the model had when this was made.

    Attributes:
        choice: how products are computed, and why.
    """

    @torch.inference_mode(False)
    def __init__(self, modes: ProductModes, passes: Passes, mode: ProductMode | None, shift: float):
        """`shift` times the identity is added: weight decay."""
        objective = passes.objective
        super().__init__(objective.size, objective.device, objective.vector_dtype)
        self.layout = objective.layout
        self._matrix, self._passes, self._shift = modes.matrix, passes, shift
        self._weights = objective.weights()
        self._kept: list[tuple[Multiply, float]] | None = None
        self.choice, self._linear_map = modes.choose(mode, self._weights)
        self.mode = self.choice.mode.name
        self._shared = (-1, -1)
        if passes.team is not None:
            self._shared = passes.team.announce_operator(objective, modes.matrix, self.choice.mode)

    def multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        """The products with the rows of `vectors` (k, n), as the rows of a new tensor (k, n)."""
        if self._passes.team is not None:
            self._passes.team.announce_multiply(*self._shared, vectors)
        return super().multiply(vectors)

    @torch.inference_mode(False)
    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(vectors.shape, dtype=torch.float64, device=self.device)
        rows = [self._as_tensors(row) for row in (vectors.clone() if vectors.is_inference() else vectors)]
        sums = [split(row, self.layout) for row in total]

        def add(multiply: Multiply, n: float) -> None:
            products = [multiply(row) for row in rows]
            for parts, product in zip(sums, products, strict=True):
                for name, part in parts.items():
                    part.add_(product[name], alpha=n)

        with self._passes.evaluating():
            if self.choice.mode.keeps:
                for multiply, n in self._kept_maps():
                    add(multiply, n)
            else:
                self._passes.each(lambda batch, n: add(self._prepared(batch), n))
        total = self._passes.summed(total) / self._passes.terms
        if self._shift:
            total.add_(vectors, alpha=self._shift)
        if not bool(total.isfinite().all()):
            name = self._matrix.name.replace("_", "-")
            raise HessianError(
                f"a product with the {name} matrix is not finite; look for overflow, or for an operation "
                "whose second derivative is (a square root at zero, say)."
            )
        return total.to(self.vector_dtype)

    def _as_tensors(self, row: torch.Tensor) -> Tensors:
        parameters = self._weights[0]
        return {name: part.to(parameters[name].dtype) for name, part in split(row, self.layout).items()}

    def _prepared(self, batch: Any) -> Multiply:
        return self._linear_map(LocalLoss(self._passes.objective, *self._weights, batch))

    def _kept_maps(self) -> list[tuple[Multiply, float]]:
        if self._kept is None:
            kept: list[tuple[Multiply, float]] = []
            self._passes.each(lambda batch, n: kept.append((self._prepared(batch), n)))
            self._kept = kept  # only when whole: an interrupt may have come between
        return self._kept
