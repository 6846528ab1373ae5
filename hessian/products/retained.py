"""Products by reverse over reverse, on graphs that are kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thermoscope.nests import leaves

from ..empirical_risk.memory import counted_saves
from .matrix import CurvatureMatrix, LocalLoss, Multiply
from .mode import LinearMaps, ProductMode

__all__ = ["Retained"]


@dataclass(frozen=True)
class Retained(ProductMode):
    """Gradient of (gradient . vector), the graph of each batch's gradient kept."""

    name = "retained"
    keeps = True
    way = "reverse over reverse"

    def prepare(self, matrix: CurvatureMatrix) -> LinearMaps:
        """The matrix's own maps on graphs."""
        return matrix.linear_map

    def measured(self, prepared: LinearMaps, loss: LocalLoss) -> tuple[Multiply, int]:
        """The map, and the bytes that autograd saves for it."""
        with counted_saves() as saved:
            multiply = prepared(loss)
        held = (*loss.parameters.values(), *loss.fixed.values(), *leaves(loss.batch, torch.Tensor))
        there = {t.untyped_storage().data_ptr() for t in held}
        return multiply, sum(size for pointer, size in saved.items() if pointer not in there)
