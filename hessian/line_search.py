"""The loss along a direction, beside what the quadratic model promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar

from thermoscope.errors import HessianError

from .loss import Loss
from .spectrum.results import Eigenpair

__all__ = ["LineSearch", "Slice", "line_search", "slice_2d"]

_GRID = np.logspace(-1, 3, 9)  # step sizes in units of 1 / |lambda|, both signs
_FARTHER = 4  # times that a grid whose last step is its best is continued, by a decade each
_PRECISION = 1e-2  # of alpha*, relative

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LineSearch:
    """L(theta - alpha (g.v) v) for many alpha (Alain, Le Roux & Manzagol, eq. 11.1).

    Whichever sign v has, a small alpha > 0 goes downhill.

    Attributes:
        curvature: lambda, v^T H v with v of length 1.
        slope: c = g.v, the gradient's component along v.
        loss: L(theta).
        alphas: the step sizes tried, ascending, those of the refinement among them; (a,).
        losses: L there, (a,); NaN or infinite where the loss is.
        alpha_best: alpha*, where the loss is smallest, to about 1%: of the steps downhill, or, if `alphas`
            were given, of those and what lies between them.
        loss_best: L there.
        bracketed: whether the loss rises again on both sides of alpha*; if not, it fell as far as was looked.
        examples: that the loss is a mean over.
        angle: the angle (radians) that v is known to, see `Eigenpair`; 0 for a direction that was given as a
            vector, None if it is not known.
        slope_doubt: by how much g.u may differ from `slope`, u being the eigenvector that v stands for.
        flat_doubt: how far around alpha* the loss differs from its smallest value by rounding only.
    """

    curvature: float
    slope: float
    loss: float
    alphas: Array = field(repr=False)
    losses: Array = field(repr=False)
    alpha_best: float
    loss_best: float
    bracketed: bool
    examples: int
    angle: float | None = 0.0
    slope_doubt: float = 0.0
    flat_doubt: float = 0.0

    @property
    def determined(self) -> bool:
        """Whether v is known well enough for alpha* and the decrease to be the eigenvector's own.

        Where the sign of g.u is open, so is the side on which the loss falls at first, and with it alpha*.
        """
        return abs(self.slope) > self.slope_doubt

    @property
    def alpha_doubt(self) -> float:
        """By how much alpha* may be off, besides the 1% of the search. Infinite if it is not determined.

        For the vector's angle, to first order, the best distance staying the same: the step is alpha (g.v) v,
        so that alpha* goes with 1 / (g.v). And `flat_doubt`.
        """
        if not self.determined:
            return np.inf
        return abs(self.alpha_best) * self.slope_doubt / abs(self.slope) + self.flat_doubt

    @property
    def decrease(self) -> float:
        """The best decrease found, L(theta) - L(alpha*); 0 if every step is uphill."""
        return self.loss - self.loss_best

    def quadratic(self, alphas: Any) -> Array:
        """What the quadratic model says: L - alpha c^2 + alpha^2 c^2 lambda / 2."""
        alphas = np.asarray(alphas, dtype=np.float64)
        c2 = self.slope**2
        model: Array = self.loss - alphas * c2 + alphas**2 * c2 * self.curvature / 2
        return model


@dataclass(frozen=True)
class Slice:
    """L(theta + a v + b w) on a grid, v and w of length 1.

    Attributes:
        a: distances along v, (p,).
        b: distances along w, (q,).
        losses: (p, q).
    """

    a: Array = field(repr=False)
    b: Array = field(repr=False)
    losses: Array = field(repr=False)


def line_search(
    loss: Loss,
    direction: Eigenpair | Any,
    *,
    alphas: Sequence[float] | Array | None = None,
    gradient: Array | None = None,
) -> LineSearch:
    """Search the loss along an eigenvector, or any direction.

    Args:
        loss: at the model's present weights.
        direction: an `Eigenpair`, or a vector (n,), whose curvature then costs one Hessian product.
        alphas: step sizes to try, of either sign; 0 is added. By default a grid of both signs from 0.1 to
            1000 times 1 / |lambda|, whose best is sought downhill, at alpha >= 0, and farther out if the loss
            is still falling there. The best is then refined between its neighbours by Brent's bounded method.
        gradient: if it is known already.

    Raises:
        HessianError: for a direction that is zero, of another length, or perpendicular to the gradient.
    """
    v = _unit(loss, direction)
    g = loss.gradient() if gradient is None else gradient
    c, length = float(g @ v), float(np.linalg.norm(g))
    if abs(c) <= 1e-12 * length:
        raise HessianError(
            "the direction is perpendicular to the gradient (g.v = 0), so that theta - alpha (g.v) v is "
            "theta for every alpha; choose another, or look at slice_2d."
        )
    if isinstance(direction, Eigenpair):
        curvature = direction.value
    else:
        vector = torch.as_tensor(v[None], dtype=loss.vector_dtype, device=loss.device)
        curvature = float(v @ loss.hessian().multiply(vector)[0].double().cpu().numpy())

    def losses_at(steps: Array) -> Array:
        return loss.along(v[None], -c * steps[:, None])

    both_signs = np.concatenate([-_GRID, _GRID]) / max(abs(curvature), 1e-12)
    grid = np.unique(np.append(both_signs if alphas is None else np.asarray(alphas, np.float64), 0.0))
    values = losses_at(grid)
    least = -np.inf if alphas is not None else 0.0
    for _ in range(_FARTHER if alphas is None else 0):
        if _lowest(grid, values, least) < len(grid) - 1:
            break
        more = grid[-1] * np.array([10**0.5, 10])
        grid, values = np.append(grid, more), np.append(values, losses_at(more))

    best = _lowest(grid, values, least)
    bracketed = 0 < best < len(grid) - 1
    if bracketed:
        grid, values = _refined(losses_at, grid, values, best, least)
        best = _lowest(grid, values, least)
    alpha, lowest = float(grid[best]), float(values[best])
    here = float(values[grid == 0][0])
    angle = direction.angle if isinstance(direction, Eigenpair) else 0.0
    doubt = _slope_doubt(c, length, np.pi / 2 if angle is None else angle)
    flat = _flat(grid, values, best, torch.finfo(loss.vector_dtype).eps * abs(lowest)) if bracketed else 0.0
    return LineSearch(
        curvature, c, here, grid, values, alpha, lowest, bracketed, loss.examples, angle, doubt, flat
    )


def slice_2d(
    loss: Loss, v: Eigenpair | Any, w: Eigenpair | Any, *, reach: float = 1.0, points: int = 21
) -> Slice:
    """The loss on a square of +-reach along two directions, points x points, in one pass over the data.

    Raises:
        HessianError: for a direction that is zero or of another length.
    """
    axis = np.linspace(-reach, reach, points)
    a, b = np.meshgrid(axis, axis, indexing="ij")
    directions = np.stack([_unit(loss, v), _unit(loss, w)])
    losses = loss.along(directions, np.stack([a.ravel(), b.ravel()], 1)).reshape(points, points)
    return Slice(axis, axis, losses)


def _unit(loss: Loss, direction: Eigenpair | Any) -> Array:
    if isinstance(direction, Eigenpair):
        direction = direction.vector
    if isinstance(direction, torch.Tensor):
        direction = direction.detach().cpu().numpy()
    v = np.asarray(direction, np.float64)
    if v.shape != (loss.size,):
        raise HessianError(
            f"the direction has shape {v.shape}, but the loss has {loss.size} parameters; give a vector of "
            "that length."
        )
    norm = float(np.linalg.norm(v))
    if not norm > 0 or not np.isfinite(norm):
        raise HessianError(f"the direction has length {norm}; give one of finite length above 0.")
    unit: Array = v / norm
    return unit


def _slope_doubt(slope: float, length: float, angle: float) -> float:
    """How far g.u may be from g.v = slope for unit vectors u and v that enclose `angle` at most.

    u = cos(a) v + sin(a) w with w perpendicular to v, and |g.w| <= sqrt(||g||^2 - (g.v)^2).
    """
    across = max(length**2 - slope**2, 0.0) ** 0.5
    return float(np.sin(angle) * across + (1 - np.cos(angle)) * abs(slope))


def _flat(grid: Array, values: Array, best: int, rounding: float) -> float:
    """How far from the best step size the loss is higher by `rounding`, were it a parabola there.

    Each side has the parabola through its first point that is clearly higher; the wider one counts.
    """
    higher = np.flatnonzero(np.isfinite(values) & (values > values[best] + 10 * rounding))
    first = [*higher[higher < best][-1:], *higher[higher > best][:1]]
    reach = np.abs(grid[first] - grid[best]) * np.sqrt(rounding / (values[first] - values[best]))
    return float(reach.max(initial=0.0)) if first else np.inf


def _lowest(grid: Array, values: Array, least: float) -> int:
    """Where the loss is smallest among the step sizes from `least` on."""
    return int(np.where(np.isfinite(values) & (grid >= least), values, np.inf).argmin())


def _refined(losses_at: Any, grid: Array, values: Array, best: int, least: float) -> tuple[Array, Array]:
    """Grid and losses with those step sizes added that Brent's method tried around the best."""
    tried: list[tuple[float, float]] = []

    def objective(alpha: float) -> float:
        tried.append((alpha, float(losses_at(np.array([alpha]))[0])))
        return tried[-1][1] if np.isfinite(tried[-1][1]) else float(np.finfo(np.float64).max)

    low, high = max(grid[best - 1], least), grid[best + 1]
    precision = _PRECISION * max(abs(grid[best]), (high - low) / 100)
    minimize_scalar(
        objective, bounds=(low, high), method="bounded", options={"xatol": precision, "maxiter": 20}
    )
    grid = np.concatenate([grid, [alpha for alpha, _ in tried]])
    values = np.concatenate([values, [value for _, value in tried]])
    order = grid.argsort()
    return grid[order], values[order]
