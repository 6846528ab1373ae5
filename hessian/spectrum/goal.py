"""What an eigen-solver is asked for, and when a pair counts as converged."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .krylov_basis import ends
from .tall import Matrix

__all__ = ["Goal", "Span"]


@dataclass(frozen=True)
class Goal:
    """What is wanted, and when it counts as reached.

    Attributes:
        largest: k of LA(k).
        smallest: j of SA(j).
        tol: residual of a converged pair, as a share of the width.
        rtol: and as a share of its own |value|, unless that is zero as far as tol says.
        rounding: relative error of a product, below which no residual can be expected.
    """

    largest: int
    smallest: int
    tol: float
    rtol: float
    rounding: float

    @property
    def wanted(self) -> int:
        """How many pairs."""
        return self.largest + self.smallest

    def ends(self, size: int) -> npt.NDArray[np.int64]:
        """Which of `size` ascending pairs are wanted."""
        return ends(size, self.largest, self.smallest)

    def threshold(self, span: Span) -> float:
        """The residual that is small beside the whole spectrum."""
        return max(self.tol * span.width, self.rounding * span.scale)

    def thresholds(self, values: Matrix, span: Span) -> Matrix:
        """The largest residual of a converged pair with each of these values.

        No more than tol x width; and rtol x |value|, or so little that value and residual together are within
        tol x width of zero.
        """
        sizes, most = np.abs(values), self.tol * span.width
        own = np.maximum(self.rtol * sizes, most - sizes)
        thresholds: Matrix = np.maximum(np.minimum(most, own), self.rounding * span.scale)
        return thresholds


@dataclass
class Span:
    """From the smallest to the largest Ritz value seen: what residuals are small or large against."""

    low: float = math.inf
    high: float = -math.inf

    def cover(self, values: Matrix) -> None:
        """Include these values."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def width(self) -> float:
        """High minus low."""
        return self.high - self.low

    @property
    def scale(self) -> float:
        """A lower bound of the operator's norm."""
        return max(abs(self.low), abs(self.high))
