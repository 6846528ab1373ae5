"""How well the eigenvectors are determined: the angle to the true ones, from residuals and gaps."""

from __future__ import annotations

import math

import numpy as np

from .tall import Matrix

__all__ = ["angles"]

# How many residuals a neighbour may be closer. One would do for an eigenvalue that is known to be alone; but
# where a Ritz value is not resolved, there may be more eigenvalues than Ritz values: on graded spectra, Ritz
# values with residuals up to a third of the distance hid others.
_RESOLVED = 4


def angles(values: Matrix, residuals: Matrix, beyond: Matrix | None) -> list[float | None]:
    """Bounds of the angles (radians) between approximate eigenvectors and true ones.

    Davis and Kahan 1970 (Parlett 1998, theorem 11.7.1): a unit vector with the Rayleigh quotient theta and
    the residual r encloses with an eigenvector an angle of at most arcsin(r / gap), where all other
    eigenvalues are at least `gap` away from theta. The other eigenvalues are those of the known spectrum,
    each closer to theta by four times its own residual. pi/2, that is, not determined, where r is no less
    than the gap.

    Args:
        values: of the pairs, (p,).
        residuals: upper bounds, (p,).
        beyond: (value, residual) of the nearest eigenvalues that are not among the pairs, (q, 2); empty if
            there are no others; None if they are not known: then no angle is, and all are None.
    """
    if beyond is None:
        return [None] * len(values)
    known = np.concatenate([np.stack([values, residuals], 1), beyond])
    found: list[float | None] = []
    for i, (value, residual) in enumerate(zip(values, residuals, strict=True)):
        others = np.delete(known, i, axis=0)
        gap = float((np.abs(others[:, 0] - value) - _RESOLVED * others[:, 1]).min(initial=math.inf))
        found.append(math.asin(residual / gap) if gap > residual else math.pi / 2)
    return found
