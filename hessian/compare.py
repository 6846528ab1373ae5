"""What stays of a spectrum from a subset to all data, snapshot to snapshot; where a gradient lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch

from thermoscope.errors import HessianError

from .spectrum.results import Eigenpair, Spectrum

__all__ = [
    "Comparison",
    "ComparisonEnd",
    "GradientOverlap",
    "GradientOverlapEnd",
    "compare",
    "gradient_overlap",
]

Array = npt.NDArray[np.float64]

_CHUNK = 1 << 16  # entries of each vector at a time, in float64


@dataclass(frozen=True)
class ComparisonEnd:
    """One end of two spectra: their first k pairs, k being how many both have.

    Attributes:
        values_a: eigenvalues, outermost first, (k,).
        values_b: of the other spectrum, (k,).
        uncertainties: by how much each difference may be off: the sum of both residuals, (k,).
        overlaps: |<v_i, w_j>| of vector i of a with vector j of b, (k, k).
        overlap_bounds: the least and the most that each can be for the true eigenvectors, given the angles
            that v_i and w_j are known to, (2, k, k); 0 and 1 where one of them is not determined.
        angles: principal angles between the two spans, radians, ascending, (k,); 0 for a direction that both
            contain, pi/2 for one of a that is perpendicular to all of b.
    """

    values_a: Array
    values_b: Array
    uncertainties: Array
    overlaps: Array = field(repr=False)
    overlap_bounds: Array = field(repr=False)
    angles: Array

    @property
    def differences(self) -> Array:
        """values_b - values_a."""
        return self.values_b - self.values_a

    @property
    def relative_differences(self) -> Array:
        """The same as a share of |values_a|; infinite or NaN where that is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            relative: Array = self.differences / np.abs(self.values_a)
        return relative


@dataclass(frozen=True)
class Comparison:
    """Two spectra, end by end.

    Attributes:
        largest: the LA pairs.
        smallest: the SA pairs.
    """

    largest: ComparisonEnd
    smallest: ComparisonEnd


@dataclass(frozen=True)
class GradientOverlapEnd:
    """A gradient and the eigenvectors at one end of a spectrum.

    Attributes:
        cosines: between the gradient and each vector, outermost first, (k,); the sign is as arbitrary as the
            vector's own.
        doubts: by how much each of the `shares` may differ from that of the true eigenvector: the sine of the
            angle that the vector is known to, (k,).
    """

    cosines: Array
    doubts: Array

    @property
    def shares(self) -> Array:
        """The share of the gradient's squared norm along each vector, c_i^2 / ||g||^2."""
        squares: Array = self.cosines**2
        return squares

    @property
    def share(self) -> float:
        """The share in their span: the sum, since eigenvectors are orthonormal."""
        return float(self.shares.sum())


@dataclass(frozen=True)
class GradientOverlap:
    """How much of a gradient lies along the extreme eigenvectors.

    Attributes:
        norm: ||g||.
        largest: along the LA vectors.
        smallest: along the SA vectors.
    """

    norm: float
    largest: GradientOverlapEnd
    smallest: GradientOverlapEnd


def compare(a: Spectrum, b: Spectrum) -> Comparison:
    """Compare two spectra of the same parameters (Alain, Le Roux and Manzagol, appendix 11.D).

    Does the leading eigenvector stay? `comparison.largest.overlaps[0, 0]` is then close to 1. Where
    eigenvalues are close, single vectors may turn into each other while their span stays: the angles tell.

    Args:
        a: of a subset, say, or of one snapshot.
        b: of all the data, or of another. If the spectra have different numbers of pairs at an end, the
            outermost ones that both have are compared.

    Raises:
        HessianError: if the spectra are of different parameters or have no pairs in common.
    """
    size_a, size_b = _size(a), _size(b)
    if size_a != size_b:
        raise HessianError(f"the spectra are of different sizes, {size_a:,} and {size_b:,}.")
    if a.layout and b.layout and list(a.layout.items()) != list(b.layout.items()):
        names = [name for name in {**a.layout, **b.layout} if a.layout.get(name) != b.layout.get(name)]
        what = f"they differ in {', '.join(names[:3])}" if names else "their order differs"
        raise HessianError(f"the spectra are of different parameters: {what}.")
    comparison = Comparison(_end(a.largest, b.largest), _end(a.smallest, b.smallest))
    if not len(comparison.largest.angles) and not len(comparison.smallest.angles):
        raise HessianError("the spectra have no pairs at the same end; compute the same ends of both.")
    return comparison


def gradient_overlap(gradient: Any, spectrum: Spectrum) -> GradientOverlap:
    """The part of a gradient that lies in the spans of the LA and SA vectors.

    Args:
        gradient: array or tensor (n,).
        spectrum: of the same parameters.

    Raises:
        HessianError: if the gradient is no array, has another size, is not finite, or is zero (and has no
            direction).
    """
    size = _size(spectrum)
    if isinstance(gradient, torch.Tensor):
        gradient = gradient.detach().cpu().numpy()
    try:
        g = np.asarray(gradient, np.float64)
    except (TypeError, ValueError) as error:
        raise HessianError(
            f"the gradient is a {type(gradient).__name__}; give an array, loss.gradient() say."
        ) from error
    if g.shape != (size,):
        raise HessianError(f"the gradient has shape {g.shape}; this spectrum needs {(size,)}.")
    norm = float(np.linalg.norm(g))
    if not 0 < norm < np.inf:
        raise HessianError("the gradient is zero or not finite: it has no direction to compare.")

    def end(pairs: Sequence[Eigenpair]) -> GradientOverlapEnd:
        cosines = np.array([g @ pair.vector.astype(np.float64) for pair in pairs]) / norm
        return GradientOverlapEnd(cosines, np.array([pair.doubt for pair in pairs]))

    return GradientOverlap(norm, end(spectrum.largest), end(spectrum.smallest))


def _size(spectrum: Spectrum) -> int:
    if not spectrum.pairs:
        raise HessianError("the spectrum has no eigenpairs.")
    return len(spectrum.pairs[0].vector)


def _end(a: Sequence[Eigenpair], b: Sequence[Eigenpair]) -> ComparisonEnd:
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    triangle = _triangle([pair.vector for pair in (*a, *b)])
    v, w = triangle[:, :count], triangle[:, count:]
    overlaps = np.abs(v.T @ w)
    return ComparisonEnd(
        values_a=np.array([pair.value for pair in a]),
        values_b=np.array([pair.value for pair in b]),
        uncertainties=np.array([x.residual + y.residual for x, y in zip(a, b, strict=True)]),
        overlaps=overlaps,
        overlap_bounds=_turned(overlaps, _angles(a)[:, None] + _angles(b)),
        angles=scipy.linalg.subspace_angles(v, w)[::-1] if count else np.zeros(0),
    )


def _angles(pairs: Sequence[Eigenpair]) -> Array:
    return np.array([np.pi / 2 if pair.angle is None else pair.angle for pair in pairs])


def _turned(cosines: Array, angles: Array) -> Array:
    """The least and the most |cosine| of two lines after they have turned by `angles` in all, (2, ...)."""
    between = np.arccos(np.minimum(cosines, 1.0))
    least = np.cos(np.minimum(between + angles, np.pi / 2))
    return np.stack([least, np.cos(np.maximum(between - angles, 0.0))])


def _triangle(vectors: Sequence[npt.NDArray[Any]]) -> Array:
    """R of the QR factorisation of the vectors as columns, chunk by chunk of their entries.

    As Q is an isometry, the few entries of R's columns have the lengths and angles of the long vectors.
    """
    triangle = np.zeros((0, len(vectors)))
    for begin in range(0, len(vectors[0]) if vectors else 0, _CHUNK):
        chunk = np.stack([vector[begin : begin + _CHUNK] for vector in vectors], axis=1)
        taller = np.concatenate([triangle, chunk])  # in float64, as the triangle is
        triangle = np.asarray(np.linalg.qr(taller, mode="r"), np.float64)
    return triangle
