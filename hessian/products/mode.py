"""The contract of the ways to compute products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from .matrix import CurvatureMatrix, LocalLoss, Multiply

__all__ = ["LinearMaps", "ProductMode"]

LinearMaps = Callable[[LocalLoss], Multiply]
"""Makes the linear map of one batch, vector -> product."""


class ProductMode(ABC):
    """A way to compute a curvature matrix's products with vectors.

    Its members are `Linearized()`, `Retained()`, `ReverseReverse()` and `ForwardReverse()`; a way of your own
    is a subclass with a `name` and a `prepare`, a frozen dataclass at best: equal ones are one to a `Loss`.

    Attributes:
        name: what records, errors and the command line call it.
        keeps: whether an operator keeps the linear maps of all batches, which costs memory and saves making
            them for each product.
        way: how it differentiates, in words.
        checked_by: a mode that keeps too, and that it must agree with before it is chosen by itself.
    """

    name: ClassVar[str]
    keeps: ClassVar[bool] = False
    way: ClassVar[str] = ""
    checked_by: ClassVar[ProductMode | None] = None

    @abstractmethod
    def prepare(self, matrix: CurvatureMatrix) -> LinearMaps:
        """What makes the linear maps of this matrix, for one operator.

        What several batches share, such as a trace, belongs to what is returned.
        """

    def measured(self, prepared: LinearMaps, loss: LocalLoss) -> tuple[Multiply, int]:
        """A linear map by what `prepare` gave, and the bytes it keeps beyond weights and data.

        To be overridden where `keeps` is true.
        """
        return prepared(loss), 0
