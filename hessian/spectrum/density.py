"""The density of the whole spectrum, from a few short Lanczos runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator, as_operator
from .arguments import seeded
from .counted import Products
from .krylov_basis import KrylovBasis
from .trace import Estimate

__all__ = ["Density", "Quadrature", "spectral_density"]

Array = npt.NDArray[np.float64]

_FINEST = 300  # the default sigma is this part of the width
_MARGIN = 5  # sigmas of the grid beyond the outermost nodes
# A spectrum narrower than this share of its largest value is a single point, as far as rounding can tell.
_POINT = 1e-6
# A Lanczos remainder of so many roundings ends a run. Where eigenvalues are equal but for the rounding of
# products, 10 to 70 remain. Going on would only cost steps; stopping moves nodes by at most the remainder.
_ROUNDINGS = 100


@dataclass(frozen=True)
class Quadrature:
    """The spectrum as one random unit vector v sees it: eigenvalue lambda_i has the weight (v.u_i)^2.

    This is Gauss's rule for that: sum_k weights[k] f(nodes[k]) = v^T f(A) v for polynomials f up to degree
    2m - 1.

    Attributes:
        nodes: ascending, (m,).
        weights: nonnegative, with sum 1, (m,).
        exact: whether Lanczos exhausted the space, up to rounding: the rule then holds for every f.
    """

    nodes: Array
    weights: Array
    exact: bool

    def bounds_below(self, x: float) -> tuple[float, float]:
        """What v's weight on the eigenvalues below `x` is at least and at most.

        Chebyshev, Markov and Stieltjes: only the two nodes around `x` can be on the wrong side of it.
        """
        below = int(np.searchsorted(self.nodes, x))
        reach = 0 if self.exact else 1
        total = np.append(0.0, self.weights.cumsum())
        return float(total[max(below - reach, 0)]), float(total[min(below + reach, len(self.nodes))])


@dataclass(frozen=True)
class Density:
    """The distribution of the eigenvalues of a symmetric operator; as a density, it integrates to 1.

    Standard errors are over the start vectors: NaN if there is only one. They do not contain the error of
    the quadrature, which is 0 for polynomials up to degree 2m - 1 (trace and Frobenius norm, say), and which
    `bounds_below` limits for counts.

    Attributes:
        quadratures: one per start vector; everything else derives from them.
        size: n.
        products: matrix-vector products.
        sigma: standard deviation of the Gaussian that every eigenvalue is drawn as.
        grid: eigenvalues, evenly spaced, (points,).
        density: per unit of eigenvalue, (points,).
        standard_error: of `density`, (points,).
    """

    quadratures: tuple[Quadrature, ...] = field(repr=False)
    size: int
    products: int
    sigma: float
    grid: Array = field(repr=False)
    density: Array = field(repr=False)
    standard_error: Array = field(repr=False)

    @property
    def smallest(self) -> float:
        """The smallest node: close to the smallest eigenvalue, never below it."""
        return min(float(rule.nodes[0]) for rule in self.quadratures)

    @property
    def largest(self) -> float:
        """The largest node: close to the largest eigenvalue, never above it."""
        return max(float(rule.nodes[-1]) for rule in self.quadratures)

    @property
    def width(self) -> float:
        """Largest minus smallest."""
        return self.largest - self.smallest

    @property
    def trace(self) -> Estimate:
        """Tr A, the sum of the eigenvalues."""
        return self._sum(self.moment(1))

    @property
    def frobenius_squared(self) -> Estimate:
        """||A||_F^2, the sum of their squares."""
        return self._sum(self.moment(2))

    def mean(self, function: Callable[[Array], Array]) -> Estimate:
        """The mean of f(lambda) over all n eigenvalues, Tr f(A) / n; `function` takes an array."""
        return Estimate.from_samples(self._samples(function))

    def moment(self, power: int) -> Estimate:
        """The mean of lambda^power over all eigenvalues."""
        return self.mean(lambda nodes: nodes**power)

    def share_below(self, x: float) -> Estimate:
        """The share of eigenvalues below `x`."""
        return self.mean(lambda nodes: (nodes < x).astype(np.float64))

    def bounds_below(self, x: float) -> tuple[float, float]:
        """Where that share lies for these start vectors, whatever the error of the quadrature.

        Far apart if `x` lies in a part of the spectrum that `steps` do not resolve.
        """
        bounds = np.array([rule.bounds_below(x) for rule in self.quadratures])
        lower, upper = bounds.mean(axis=0)
        return float(lower), float(upper)

    def negative_share(self, tol: float = 1e-3) -> Estimate:
        """The share of eigenvalues below -tol x width.

        A network's Hessian has a large kernel; numerically its eigenvalues lie on both sides of zero.
        """
        return self.share_below(-tol * self.width)

    @property
    def negative_mass(self) -> Estimate:
        """sum |lambda| over the negative eigenvalues / sum |lambda| over all; 0 for a zero operator.

        No threshold is needed: eigenvalues near zero have no mass. Of a ratio of means the standard error is
        by the delta method.
        """
        negative = self._samples(lambda nodes: -nodes.clip(max=0))
        total = self._samples(np.abs)
        if not total.any():
            return Estimate(0.0, 0.0)
        ratio = float(negative.mean() / total.mean())
        scatter = Estimate.from_samples(negative - ratio * total)
        return Estimate(ratio, scatter.standard_error / float(total.mean()))

    def _samples(self, function: Callable[[Array], Array]) -> Array:
        return np.array([rule.weights @ function(rule.nodes) for rule in self.quadratures])

    def _sum(self, mean: Estimate) -> Estimate:
        return Estimate(self.size * mean.value, self.size * mean.standard_error)


def spectral_density(
    operator: object,
    *,
    vectors: int = 10,
    steps: int = 80,
    seed: int = 0,
    points: int = 1000,
    sigma: float | None = None,
    progress: bool = False,
) -> Density:
    """All eigenvalues at once, by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    For each of some random vectors, uniform on the sphere, a Lanczos run with full orthogonalisation gives a
    Gauss quadrature whose weights sum to 1; their mean stands for the n eigenvalues (for networks: Ghorbani,
    Krishnan and Xiao 2019). Costs vectors x steps products and the memory of steps + 1 vectors.

    Args:
        operator: a `SymmetricOperator`, or a symmetric array, tensor or scipy `LinearOperator`, of size n.
        vectors: start vectors; their number makes the standard error small.
        steps: of each Lanczos run; their number makes the spectrum's details visible. A run ends early where
            its space is exhausted, after n steps at the latest.
        seed: of the start vectors; the global random streams are not touched.
        points: of the grid.
        sigma: standard deviation of the Gaussian that each node is drawn as, in units of the eigenvalues; by
            default 1/300 of the width, or the grid's spacing if that is wider.
        progress: show a progress bar.

    Raises:
        HessianError: for numbers that make no density, or if a product is not finite.
    """
    operator = as_operator(operator)
    if vectors < 1 or steps < 1:
        raise HessianError(f"vectors={vectors}, steps={steps} leaves nothing to do; give at least 1 of each.")
    if points < 4 * _MARGIN:
        raise HessianError(f"points={points} are too few for a curve; give at least {4 * _MARGIN}.")
    if sigma is not None and not 0 < sigma < np.inf:
        raise HessianError(f"sigma={sigma} has to be a positive number, in units of the eigenvalues.")
    generator = seeded(seed)
    products = Products(operator, None, progress=False)
    with tqdm(
        desc="spectral density",
        total=vectors * min(steps, operator.shape[0]),
        unit=" products",
        leave=False,
        disable=None if progress else True,
    ) as bar:
        rules = tuple(_quadrature(operator, products, steps, generator, bar) for _ in range(vectors))
    grid, sigma = _grid(rules, points, sigma)
    # In units of 1 / sigma: squares of a density could overflow where eigenvalues are tiny.
    curves = np.array([_broadened(rule, grid, sigma) for rule in rules])
    scatter = curves.std(axis=0, ddof=1) / vectors**0.5 if vectors > 1 else np.full(points, np.nan)
    mean = curves.mean(axis=0)
    return Density(rules, operator.shape[0], products.count, sigma, grid, mean / sigma, scatter / sigma)


def _quadrature(
    operator: SymmetricOperator,
    products: Products,
    steps: int,
    generator: torch.Generator,
    bar: tqdm[Any],
) -> Quadrature:
    lanczos = KrylovBasis(
        products,
        operator.shape[0],
        steps,
        generator=generator,
        dtype=operator.vector_dtype,
        device=operator.device,
        eps=operator.eps,
    )
    lanczos.begin()
    floor, exhausted = _ROUNDINGS * operator.eps, False
    while not (exhausted or lanczos.full):
        lanczos.step()
        bar.update()
        exhausted = bool(lanczos.coupling[-1] <= floor * lanczos.scale)
    ritz = lanczos.ritz()
    # The start vector is the first of the basis; its component along each Ritz vector makes the weight.
    return Quadrature(ritz.values * (products.unit or 1.0), ritz.coefficients[0] ** 2, exhausted)


def _grid(rules: tuple[Quadrature, ...], points: int, sigma: float | None) -> tuple[Array, float]:
    """The grid, wide enough and fine enough for its sum to be the integral; and sigma."""
    low, high = min(rule.nodes[0] for rule in rules), max(rule.nodes[-1] for rule in rules)
    width, scale = high - low, max(abs(low), abs(high))
    # With `points` on low - 5 sigma ... high + 5 sigma, the spacing is sigma if that is width / intervals.
    intervals = points - 1 - 2 * _MARGIN
    if sigma is None:
        sigma = (width if width > _POINT * scale else scale or 1.0) / min(_FINEST, intervals)
    elif sigma * intervals < width:
        needed = int(np.ceil(width / sigma)) + 2 * _MARGIN + 1
        raise HessianError(
            f"sigma={sigma} is finer than a grid of {points} points; give at least points={needed}, or a "
            f"larger sigma."
        )
    return np.linspace(low - _MARGIN * sigma, high + _MARGIN * sigma, points), float(sigma)


def _broadened(rule: Quadrature, grid: Array, sigma: float) -> Array:
    distances = (grid[:, None] - rule.nodes) / sigma
    curve: Array = np.exp(-(distances**2) / 2) @ rule.weights / np.sqrt(2 * np.pi)
    return curve
