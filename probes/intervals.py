"""Intervals for errors: what a fraction of wrong rows says of the fraction that it estimates."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["normal", "wilson"]

_Z = NormalDist().inv_cdf(0.975)  # of 95%


def wilson(p: float, se: float, examples: int) -> tuple[float, float]:
    """The 95% interval for a fraction `p` with this standard error, by Wilson's score.

    Wilson, *Probable inference, the law of succession, and statistical inference* (1927). It never leaves
    [0, 1], and no error at all in `n` rows still says that there may be 3.84 / (n + 3.84). The number of
    independent rows is that which gives the standard error: p (1 - p) / se^2, for which rows of one example
    count as far as they are independent. Where all rows agree, se = 0 tells nothing: an example counts once.
    """
    n = p * (1 - p) / se**2 if se > 0 else float(examples)
    if not n > 0:  # nothing was measured
        return (math.nan, math.nan)
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return (min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def normal(value: float, se: float) -> tuple[float, float]:
    """The 95% interval for a quantity that cannot be negative, in units of its standard error."""
    return (max(value - _Z * se, 0.0), value + _Z * se)
