"""The products of a run: counted, limited, checked, and shown."""

from __future__ import annotations

import math
import time
from types import TracebackType

import torch
from tqdm import tqdm

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator

__all__ = ["Products"]

# The vectors multiplied at once: a stack of three million entries each has to fit into memory several times.
_BLOCK = 8


class Products:
    """A v / unit for the rows v of a tensor, with a count.

    The unit is a power of two near the size of the first product that is not zero: so squares neither
    overflow nor vanish, whatever the operator's scale, and no digit changes.

    Attributes:
        count: products so far, those of an earlier, interrupted part of the run included.
        limit: how many there may be; None for no limit.
        unit: what the products are divided by; 0 before there was one.
        seconds: spent in the operator.
    """

    def __init__(self, operator: SymmetricOperator, limit: int | None, progress: bool):
        self._operator, self.limit = operator, limit
        self.count, self.unit, self.seconds = 0, 0.0, 0.0
        self._bar = tqdm(desc="eigenpairs", unit=" products", leave=False, disable=None if progress else True)

    def __enter__(self) -> Products:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    @property
    def left(self) -> float:
        """How many more there may be."""
        return float("inf") if self.limit is None else self.limit - self.count

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """The products with the rows (k, n), which an operator that writes into its input cannot change.

        Raises:
            HessianError: if one is not finite, not real, of another shape, or too small for its dtype.
        """
        if not len(rows):
            return rows.clone()
        blocks = []
        for block in rows.split(_BLOCK):
            began = time.perf_counter()
            product = self._checked(self._operator.multiply(block.clone()), block)
            largest = float(product.abs().max())
            self.seconds += time.perf_counter() - began
            self.count += len(block)
            self._bar.update(len(block))
            if not math.isfinite(largest):
                raise HessianError(
                    "the product of the operator with a vector is not finite; look at the loss itself: it or "
                    "its derivatives overflow, or the parameters or the data hold NaN or infinity."
                )
            if not self.unit and largest:
                self.unit = self._unit(largest, product.dtype)
            blocks.append(product / (self.unit or 1.0))  # a copy: an operator may give one buffer each time
        return torch.cat(blocks)

    def report(self, done: int, wanted: int, worst: float) -> None:
        """Show how many pairs have converged, and the largest residual as a share of the width."""
        self._bar.set_postfix_str(f"{done}/{wanted} pairs, worst residual {worst:.1e} of the width")

    @staticmethod
    def _checked(product: object, block: torch.Tensor) -> torch.Tensor:
        if not isinstance(product, torch.Tensor) or product.shape != block.shape:
            shape = getattr(product, "shape", None)
            what = type(product).__name__ if shape is None else f"of shape {tuple(shape)}"
            raise HessianError(
                f"the operator's product with vectors of shape {tuple(block.shape)} is {what}; return a "
                f"tensor of the same shape."
            )
        if product.is_complex():
            raise HessianError("the operator's products are complex; only real symmetric operators work.")
        return product.detach().to(block)

    @staticmethod
    def _unit(largest: float, dtype: torch.dtype) -> float:
        tiny = torch.finfo(dtype).tiny
        if largest < tiny:
            raise HessianError(
                f"the operator's products are as small as {largest:.1e}, which {str(dtype)[6:]} cannot "
                f"resolve (less than {tiny:.1e}); scale the operator, or compute in float64."
            )
        return math.ldexp(0.5, math.frexp(largest)[1])
