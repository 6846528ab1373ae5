"""Products by reverse over reverse, on graphs that are made anew each time."""

from __future__ import annotations

from dataclasses import dataclass

from .matrix import CurvatureMatrix
from .mode import LinearMaps, ProductMode

__all__ = ["ReverseReverse"]


@dataclass(frozen=True)
class ReverseReverse(ProductMode):
    """Gradient of (gradient . vector), nothing kept."""

    name = "reverse_reverse"
    way = "reverse over reverse"

    def prepare(self, matrix: CurvatureMatrix) -> LinearMaps:
        """The matrix's own maps on graphs."""
        return matrix.linear_map
