"""The first run of an eigenpair computation: Lanczos until the wanted values have stood still."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .arguments import CERTIFICATE
from .counted import Products
from .goal import Goal, Span
from .krylov_basis import KrylovBasis, Ritz, ends
from .rayleigh_ritz import Block
from .tall import Matrix

__all__ = ["grow", "wanted_pairs"]

# The share of the room beyond the wanted pairs that is kept at a restart: fewest products for spectra like
# a network's and for random matrices; 0.3 to 0.5 are much the same.
_KEEP = 0.4
# A run ends when its values have stood still for so many products, to this share of tol x width. At the
# first residual below tol one more pair may be about to appear among the wanted ones; the search for missed
# pairs then takes several times the products, or does not see it. On fourteen recorded runs (LeNets of 53,000
# and 3.3 million parameters, early and late, tol 1e-3 and 1e-2) 8 products left pairs missing in three, 12 in
# two, and 16 in none, at 4 to 8 products more as a rule.
_STILL, _MOVED = 16, 0.5
# Lanczos's residuals go below this share of their goal, which leaves the rest to the certificate's doubt.
_SHARE = 0.9
_TINY = float(np.finfo(np.float64).tiny)


def grow(
    lanczos: KrylovBasis, goal: Goal, span: Span, products: Products, save: Callable[[bool], None]
) -> tuple[Ritz, bool]:
    """Let the basis grow until the wanted values stand still, with small residuals.

    Args:
        lanczos: begun, or continued from a saved state.
        goal: what is wanted, and when it counts as reached.
        span: of all Ritz values seen; grows.
        products: what the basis multiplies by; the last ones are left to the certificate.
        save: called after each step, and with True before each restart.

    Returns:
        The Ritz pairs, and whether they are good enough; False if the products ran out.
    """
    pause, size = goal.wanted - lanczos.size, lanczos.dimension
    history: list[tuple[int, Matrix]] = []
    while True:
        spent = products.left <= CERTIFICATE
        if lanczos.size >= goal.wanted:
            ritz = lanczos.ritz()
            kept = goal.ends(lanczos.size)
            values, residuals = ritz.values[kept], ritz.residuals[kept]
            span.cover(ritz.values)
            thresholds = _SHARE * goal.thresholds(values, span)
            below = residuals <= thresholds
            history.append((products.count, values))
            # Whoever has half of a space takes all of it, and then knows that nothing is missing.
            whole = lanczos.capacity == size < 2 * lanczos.size
            whole &= products.left >= size - lanczos.size + CERTIFICATE
            done = bool(below.all()) and not whole and _still(history, _MOVED * goal.tol * span.width)
            products.report(int(below.sum()), goal.wanted, float(residuals.max()) / (span.width or 1))
            if done or lanczos.exhausted or spent:
                return ritz, done or lanczos.exhausted
            if lanczos.full:
                save(True)
                lanczos.restart(ritz, _kept(lanczos, goal))
            # A residual hardly ever falls by more than a digit with one product: while it is digits above the
            # goal, decomposing the projected matrix can wait.
            excess = float((residuals / np.maximum(thresholds, _TINY)).max())
            pause = int(np.clip(np.log10(max(excess, 1.0)), 1, _STILL))
        for _ in range(max(pause, 1)):
            if lanczos.full or lanczos.exhausted or products.left <= CERTIFICATE:
                break
            lanczos.step()
            save(False)


def wanted_pairs(lanczos: KrylovBasis, ritz: Ritz, goal: Goal) -> tuple[Block, Matrix | None]:
    """The wanted Ritz pairs; (value, residual) of the next ones, None if no more are known."""
    count = len(ritz.values)
    kept = goal.ends(count)
    vectors = lanczos.vectors(ritz.coefficients[:, kept])
    block = Block(vectors, lanczos.products(ritz, vectors, kept), ritz.values[kept], ritz.residuals[kept])
    if count == len(kept) and not lanczos.exhausted:
        return block, None
    nearest = [goal.smallest] * bool(goal.smallest) + [count - goal.largest - 1] * bool(goal.largest)
    which = [i for i in sorted(set(nearest)) if i not in kept and 0 <= i < count]
    return block, np.stack([ritz.values, ritz.residuals], 1)[which]


def _still(history: list[tuple[int, Matrix]], most: float) -> bool:
    """Whether the values have hardly moved for some products."""
    now, values = history[-1]
    before = [old for count, old in history if count <= now - _STILL]
    return bool(before) and float(np.abs(values - before[-1]).max()) <= most


def _kept(lanczos: KrylovBasis, goal: Goal) -> npt.NDArray[np.int64]:
    """Which Ritz vectors stay at a restart: the wanted ones, and more at each end that speed them up."""
    extra = int(_KEEP * (lanczos.capacity - goal.wanted))
    upper = round(extra * goal.largest / goal.wanted)
    return ends(lanczos.size, goal.largest + upper, goal.smallest + extra - upper)
