"""Did the first run miss a pair? A second one, from another start, where the first has left no trace."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from .counted import Products
from .goal import Goal, Span
from .krylov_basis import KrylovBasis, Ritz, ends
from .rayleigh_ritz import Block, polished, rayleigh_ritz
from .results import MissedCheck
from .tall import Matrix

__all__ = ["MissedSearch", "undetected_share"]

# A round of the search makes at least this many products unless it can prove its point with fewer. On a
# hundred adversarial matrices (multiplicities mostly) 8 left 3 of 23 misses undetected, 20 left none.
_LEAST = 20
# Whoever asks for less than this wants exact pairs: the search then goes on until it has converged itself.
_TIGHT = 1e-6
# Probability that the bound of a round is wrong.
_FAILURE = 0.01


def undetected_share(size: int, products: int, failure: float) -> float:
    """How far the largest Ritz value may be below the largest eigenvalue, as a share of the true width.

    Kuczynski and Wozniakowski 1992, theorem 4.2: after m products from a start that is uniform on the sphere
    in n dimensions, it is farther than eps with probability at most 1.648 sqrt(n) exp(-sqrt(eps) (2m - 1)).
    """
    return (math.log(1.648 * math.sqrt(size) / failure) / (2 * products - 1)) ** 2


class MissedSearch:
    """Looks for pairs beyond the wanted ones in the complement of all pairs known; adds what it finds.

    A Ritz value there is a one-sided bound: if it lies beyond the last wanted pair, a pair was missed for
    certain (Courant-Fischer). That none lies there is never certain; a round ends when

    - the theorem of Kuczynski and Wozniakowski excludes one with probability 0.99, or
    - the complement is exhausted, or
    - 20 products have been spent; for tolerances below 1e-6, only once the round's own extreme Ritz pairs
      have converged too.

    Attributes:
        block: all pairs known.
        span: of all values seen; goes on growing.
        products: spent so far.
        found: missed pairs so far.
        beyond: (value, residual) of the last round's Ritz pairs in the complement, (m, 2).
    """

    def __init__(
        self,
        block: Block,
        goal: Goal,
        span: Span,
        products: Products,
        generator: torch.Generator,
        capacity: int,
        eps: float,
    ):
        """`eps`: relative rounding of a product."""
        self.block, self._goal, self.span, self._multiply = block, goal, span, products
        self._generator, self._capacity, self._eps = generator, capacity, eps
        self.products = self.found = 0
        self.beyond: Matrix = np.zeros((0, 2))
        self._seen: tuple[float, float, float] | None = None

    def run(self) -> bool:
        """One round after the other until one finds nothing; False if the products ran out before."""
        while len(self.block.values) < self.block.vectors.shape[1] and self._multiply.left >= 1:
            if not self._round():
                return True
        return self._multiply.left >= 1

    def summary(self) -> MissedCheck | None:
        """What is known; None if not even one round has got anywhere."""
        if len(self.block.values) == self.block.vectors.shape[1]:
            return MissedCheck(self.products, self.found, -math.inf, math.inf, 0.0)
        if self._seen is None:
            return None
        smallest, largest, gap = self._seen
        return MissedCheck(self.products, self.found, largest, smallest, gap)

    def _round(self) -> bool:
        """Whether it found (and added) missed pairs."""
        before, vectors = self._multiply.count, self.block.vectors
        lanczos = KrylovBasis(
            self._multiply,
            vectors.shape[1],
            self._capacity,
            generator=self._generator,
            dtype=vectors.dtype,
            device=vectors.device,
            locked=vectors,
            eps=self._eps,
        )
        lanczos.scale = self.span.scale  # rounding is that of the whole operator
        try:
            lanczos.begin()
            missed = self._search(lanczos)
            if not missed.shape[1]:
                return False
            new = lanczos.vectors(missed)
            del lanczos
            products = self._multiply(new)
            block = rayleigh_ritz(
                torch.cat([vectors, new]), torch.cat([self.block.products, products]), self.block.doubt
            )
            self.span.cover(block.values)
            self.block = polished(
                block,
                self._goal.ends,
                lambda values: self._goal.thresholds(values, self.span),
                self._multiply,
                lambda: self._multiply.left,
            )
            self.found += len(new)
            return True
        finally:
            self.products += self._multiply.count - before

    def _search(self, lanczos: KrylovBasis) -> Matrix:
        """Coefficients of the Ritz vectors beyond the wanted pairs, one per column."""
        goal, values, begin = self._goal, self.block.values, self._multiply.count
        while True:
            lanczos.step()
            # The decomposition of a large basis every few products: it is never far from needed.
            if lanczos.size % (1 + lanczos.size // 32) and not (lanczos.full or lanczos.exhausted):
                continue
            ritz = lanczos.ritz()
            self.span.cover(ritz.values)
            # Half the tolerance for what the search itself may miss, half for the errors of the pairs.
            margin = 0.5 * self._goal.threshold(self.span)
            upper = values[-goal.largest] + margin if goal.largest else np.inf
            lower = values[goal.smallest - 1] - margin if goal.smallest else -np.inf
            beyond = np.flatnonzero((ritz.values > upper) | (ritz.values < lower))
            self._note(lanczos, ritz, beyond)
            left = int(min(self._multiply.left, len(beyond)))
            if len(beyond):
                ready = beyond[ritz.residuals[beyond] <= margin]
                # A restart may be unable to keep all of them: what has converged by then is taken.
                if len(ready) == len(beyond) or (lanczos.full and len(ready)):
                    return ritz.coefficients[:, ready[:left]]
                if self._multiply.left <= len(beyond):
                    return ritz.coefficients[:, beyond[:left]]
            elif self._multiply.left < 1 or self._clear(
                lanczos, ritz, lower, upper, margin, self._multiply.count - begin
            ):
                return ritz.coefficients[:, :0]
            if lanczos.full:
                extra = lanczos.capacity // 4
                lanczos.restart(ritz, ends(lanczos.size, extra, extra))

    def _clear(
        self, lanczos: KrylovBasis, ritz: Ritz, lower: float, upper: float, margin: float, spent: int
    ) -> bool:
        """Whether a round that sees nothing between `lower` and `upper` may end."""
        doubt = self._doubt(lanczos, ritz)
        if lanczos.exhausted or (ritz.values[-1] + doubt <= upper and ritz.values[0] - doubt >= lower):
            return True
        extreme = ritz.residuals[ends(len(ritz.values), bool(self._goal.largest), bool(self._goal.smallest))]
        return spent >= _LEAST and (self._goal.tol > _TIGHT or float(extreme.max()) <= margin)

    def _note(self, lanczos: KrylovBasis, ritz: Ritz, beyond: npt.NDArray[np.int64]) -> None:
        """Remember the extremes of what is not about to be added to the pairs."""
        left = np.setdiff1d(np.arange(len(ritz.values)), beyond)
        self.beyond = np.stack([ritz.values, ritz.residuals], 1)[left]
        values = ritz.values[left] if len(left) else ritz.values
        doubt = self._doubt(lanczos, ritz)
        gap = doubt / self.span.width if self.span.width else doubt
        self._seen = float(values[0]), float(values[-1]), float(gap)

    def _doubt(self, lanczos: KrylovBasis, ritz: Ritz) -> float:
        """With probability 0.99, no eigenvalue in the complement is farther outside the Ritz values."""
        if lanczos.exhausted:
            return 0.0
        dimension = self.block.vectors.shape[1] - lanczos.locked
        # The theorem is about Krylov spaces; those after a restart are only known to be no worse.
        steps = lanczos.size if not lanczos.restarts else lanczos.capacity
        share = undetected_share(dimension, steps, _FAILURE / 2)
        # Either end may be farther out by `share` of the true width, which is itself only known up to that.
        return ritz.width * share / (1 - 2 * share) if share < 0.5 else math.inf
