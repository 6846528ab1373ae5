"""The products of a run: counted, limited, checked, and shown."""

from __future__ import annotations

from types import TracebackType

import torch
from tqdm import tqdm

from .errors import HessianError
from .operator import SymmetricOperator

__all__ = ["Products"]

# The vectors multiplied at once: a stack of three million entries each has to fit into memory several times.
_BLOCK = 8


class Products:
    """A v for the rows v of a tensor, with a count.

    Attributes:
        count: products so far, those of an earlier, interrupted part of the run included.
        limit: how many there may be; None for no limit.
    """

    def __init__(self, operator: SymmetricOperator, limit: int | None, progress: bool):
        self._operator, self.limit = operator, limit
        self.count = 0
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
        """The products with the rows (k, n).

        Raises:
            HessianError: if one is not finite.
        """
        blocks = []
        for block in rows.split(_BLOCK):
            product = self._operator.multiply(block)
            self.count += len(block)
            self._bar.update(len(block))
            if not bool(torch.isfinite(product).all()):
                raise HessianError(
                    "the product of the operator with a vector is not finite; look at the loss itself: it or "
                    "its derivatives overflow, or the parameters or the data hold NaN or infinity."
                )
            blocks.append(product)
        # A caller may overwrite the product, and an operator may return what it was given.
        return blocks[0].clone() if len(blocks) == 1 else torch.cat(blocks)

    def report(self, done: int, wanted: int, worst: float) -> None:
        """Show how many pairs have converged, and the largest residual as a share of the width."""
        self._bar.set_postfix_str(f"{done}/{wanted} pairs, worst residual {worst:.1e} of the width")
