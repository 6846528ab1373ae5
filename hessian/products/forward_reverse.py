"""Products by forward over reverse, computed anew each time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from .matrix import CurvatureMatrix
from .mode import LinearMaps, ProductMode

__all__ = ["ForwardReverse"]


@dataclass(frozen=True)
class ForwardReverse(ProductMode):
    """Jacobian-vector product of the gradient, nothing kept."""

    name = "forward_reverse"
    way = "forward over reverse"

    def prepare(self, matrix: CurvatureMatrix) -> LinearMaps:
        """The matrix's product as it is."""
        return lambda loss: partial(matrix.product, loss)
