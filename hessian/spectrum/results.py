"""What the eigen-solvers return: numbers, and how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Eigenpair", "MissedCheck", "Spectrum"]


@dataclass(frozen=True)
class Eigenpair:
    """A pair A v = value v, as far as `residual` says so.

    Attributes:
        value: the eigenvalue.
        vector: shape (n,), of length 1.
        residual: an upper bound of ||A v - value v||; `Spectrum.residuals` says from what. There is an
            eigenvalue that close to `value`.
        converged: whether the residual is at most tol x the spectrum's width and, unless value and residual
            are together within that of zero, at most rtol x |value|. (Ten roundings of a product, if that is
            more.)
        angle: the angle to the true eigenvector, in radians, is at most this, as far as the known spectrum
            says: arcsin(residual / gap to the next eigenvalue). pi/2 for a vector that is not determined;
            None where the next eigenvalue is not known.
    """

    value: float
    vector: npt.NDArray[Any] = field(repr=False)
    residual: float
    converged: bool
    angle: float | None = None

    @property
    def doubt(self) -> float:
        """The sine of `angle`, 1 for None: by how much any share of v's squared norm may be off."""
        return 1.0 if self.angle is None else float(np.sin(self.angle))


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
        tol: pairs with a residual up to tol x width may count as converged (see `Eigenpair`).
        products: matrix-vector products in all, residuals and check included.
        seconds: in all.
        method: the name of the solver: "lanczos", "eigsh", or that of one of your own.
        interrupted: whether it was stopped by Ctrl-C; the pairs are those so far.
        missed_check: None if it was not asked for, or if the run ended before it.
        layout: shape of each parameter, in the order in which the vectors have them; empty for a plain
            matrix.
        residuals: where they come from: "measured", each by a product; "certified", Lanczos's own and a bound
            of their error, by two random products (99%; see `rayleigh_ritz.certified`); "estimated",
            Lanczos's own alone, as the run was cut short.
        mode: in which the operator computed its products, if there are several.
        breakdown: `seconds` by what they were spent on: products and orthogonalisation of the main run,
            residuals, and search for missed pairs, each with its products.
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
    residuals: Literal["measured", "certified", "estimated"] = "measured"
    mode: str = ""
    breakdown: Mapping[str, float] = field(default_factory=dict, repr=False)

    @property
    def pairs(self) -> tuple[Eigenpair, ...]:
        """All pairs, the largest eigenvalue first."""
        return self.largest + self.smallest[::-1]

    @property
    def converged(self) -> bool:
        """Whether every pair is."""
        return all(pair.converged for pair in self.pairs)

    def downhill(self, gradient: Any) -> Spectrum:
        """The same with every vector's sign such that the loss does not rise along it: gradient . v <= 0.

        Args:
            gradient: array or tensor (n,). Vectors that are perpendicular to it stay as they are.
        """
        if isinstance(gradient, torch.Tensor):
            gradient = gradient.detach().cpu().numpy()

        def turned(pair: Eigenpair) -> Eigenpair:
            return replace(pair, vector=-pair.vector) if gradient @ pair.vector > 0 else pair

        return replace(
            self, largest=tuple(map(turned, self.largest)), smallest=tuple(map(turned, self.smallest))
        )

    def shares(self, pair: Eigenpair) -> dict[str, float]:
        """The share of the pair's squared norm in each parameter; they sum to 1.

        Of the true eigenvector each is within `pair.doubt` of this: the projectors on two lines differ by the
        sine of their angle.
        """
        sizes = [int(np.prod(shape)) for shape in self.layout.values()]
        parts = np.split(np.asarray(pair.vector, np.float64), np.cumsum(sizes)[:-1]) if sizes else []
        return {name: float(part @ part) for name, part in zip(self.layout, parts, strict=True)}
