"""What the eigen-solvers return: numbers, and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Eigenpair", "MissedCheck", "Spectrum"]


@dataclass(frozen=True)
class Eigenpair:
    """A pair A v = value v, as far as `residual` says so.

    Attributes:
        value: the eigenvalue.
        vector: shape (n,), of length 1.
        residual: ||A v - value v||, by a product made for this purpose; if Ctrl-C came first, Lanczos's own
            estimate.
        converged: residual <= tol x the spectrum's width, or ten roundings of the products if that is more.
    """

    value: float
    vector: npt.NDArray[Any] = field(repr=False)
    residual: float
    converged: bool


@dataclass(frozen=True)
class MissedCheck:
    """The search for missed pairs: a second run, from another start vector, in the complement.

    Attributes:
        products: what it cost.
        found: pairs that the first run had missed and that are now in the spectrum.
        largest: the largest Ritz value seen in the complement of the pairs found: below the last LA pair, or
            a pair is still missing.
        smallest: the smallest.
        gap: with probability 0.99, no pair lies farther outside `smallest` and `largest` than this share of
            the width (Kuczynski and Wozniakowski 1992, theorem 4.2; for a random start vector). 0 if the
            complement was searched completely, infinite if the products say nothing.
    """

    products: int
    found: int
    largest: float
    smallest: float
    gap: float


@dataclass(frozen=True)
class Spectrum:
    """The extreme eigenpairs of a symmetric operator.

    Attributes:
        largest: LA(k), the largest first.
        smallest: SA(j), the smallest (most negative) first.
        width: largest minus smallest eigenvalue, as far as known.
        tol: pairs with a residual up to tol x width count as converged.
        products: matrix-vector products in all, residuals and check included.
        seconds: in all.
        method: "lanczos" or "eigsh".
        interrupted: whether it was stopped by Ctrl-C; the pairs are those so far.
        missed_check: None if it was not asked for, or if the run ended before it.
        layout: shape of each parameter, in the order in which the vectors have them; empty for a plain
            matrix.
    """

    largest: tuple[Eigenpair, ...]
    smallest: tuple[Eigenpair, ...]
    width: float
    tol: float
    products: int
    seconds: float
    method: str
    interrupted: bool = False
    missed_check: MissedCheck | None = None
    layout: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def pairs(self) -> tuple[Eigenpair, ...]:
        """All pairs, the largest eigenvalue first."""
        return self.largest + self.smallest[::-1]

    @property
    def converged(self) -> bool:
        """Whether every pair is."""
        return all(pair.converged for pair in self.pairs)

    def shares(self, pair: Eigenpair) -> dict[str, float]:
        """The share of the pair's squared norm in each parameter; they sum to 1."""
        sizes = [int(np.prod(shape)) for shape in self.layout.values()]
        parts = np.split(np.asarray(pair.vector, np.float64), np.cumsum(sizes)[:-1]) if sizes else []
        return {name: float(part @ part) for name, part in zip(self.layout, parts, strict=True)}
