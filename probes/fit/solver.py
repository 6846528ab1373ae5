"""L-BFGS for softmax regression, to a certified optimum."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .metric import Metric
from .softmax import Evaluation, Softmax

__all__ = ["Solution", "minimise"]

_MEMORY = 20  # pairs of steps and changes of the gradient
_NOISE = {torch.float32: 2e-7, torch.float64: 1e-14}  # of an objective, relative
_ROUNDING = 1e-5  # of a gap from float32 products, over the objective, with a wide margin
_STALL = 10  # steps within the noise that have not lowered the gap
_TRIALS = 20  # of a line search

Watch: TypeAlias = Callable[[torch.Tensor], bool]  # sees each point, and says whether to stop


@dataclass(frozen=True)
class Solution:
    """Where a fit ended.

    Attributes:
        theta: [W b], float64, shape (C, size + 1).
        value: the objective, nats, in float64.
        gap: an upper bound on its distance to the minimum.
        iterations: steps taken.
    """

    theta: torch.Tensor
    value: float
    gap: float
    iterations: int


def minimise(
    problem: Softmax,
    metric: Metric,
    l2: float,
    start: torch.Tensor,
    tol: float,
    max_iter: int,
    watch: Watch | None = None,
    slack: float = 0.0,
) -> Solution:
    """Minimise until the certified gap is at most `tol` times the objective or `slack`, or `watch` says stop.

    L-BFGS (Nocedal & Wright, algorithm 7.5) in the metric's coordinates, with a line search for the Wolfe
    conditions in the form that rounding does not defeat (Hager & Zhang 2005). Products are of float32 as long
    as they suffice, then of float64. So are the returned value and gap, unless the gap is within the slack
    and far above rounding.
    """
    descent = _Descent(problem, metric, l2, start, watch, slack)
    # Half: the bias may yet move. Below 1e-7 float32 only loses time.
    at = descent.run(torch.float32, max(tol / 2, 1e-7), max_iter)
    if _ROUNDING * at.value < at.gap <= slack:
        return Solution(descent.theta, at.value, at.gap, descent.iterations)
    at = descent.run(torch.float64, tol, max_iter)
    return Solution(descent.theta, at.value, at.gap, descent.iterations)


class _Descent:
    """The state of a descent; the curvature that it has gathered outlives a change of precision."""

    def __init__(
        self,
        problem: Softmax,
        metric: Metric,
        l2: float,
        start: torch.Tensor,
        watch: Watch | None,
        slack: float,
    ):
        self._problem, self._metric, self._l2, self._watch = problem, metric, l2, watch
        self._slack = slack
        self._is_stopped = False
        self._pairs: deque[tuple[torch.Tensor, torch.Tensor, float]] = deque(maxlen=_MEMORY)
        self.theta = start
        self.iterations = 0

    def run(self, dtype: torch.dtype, tol: float, max_iter: int) -> Evaluation:
        """Descend until the tolerance is met or rounding hides all progress."""
        exact = dtype == torch.float64
        at = self._problem.evaluate(self.theta, self._l2, dtype, bias_hessian=exact)
        gradient = self._metric.covariant(at.gradient)
        best, since = float("inf"), 0
        while True:
            if self._weights_gap(at) <= self._enough(at, tol):
                at = self._balance(at, tol, dtype)
                gradient = self._metric.covariant(at.gradient)
                if not exact and self._weights_gap(at) <= self._enough(at, tol):
                    return at
            if at.gap <= self._enough(at, tol) or self.iterations >= max_iter or self._is_stopped:
                return at
            step = self._direction(gradient)
            slope = float((gradient * step).sum())
            since = 0 if self._weights_gap(at) < best or -slope > _NOISE[dtype] * at.value else since + 1
            best = min(best, self._weights_gap(at))
            found = self._search(at, self._metric.contravariant(step), dtype) if since < _STALL else None
            if found is None:
                return at
            t, self.theta, after = found
            new_gradient = self._metric.covariant(after.gradient)
            change = new_gradient - gradient
            step *= t
            curvature = float((step * change).sum())
            if curvature > 0:
                self._pairs.append((step, change, curvature))
            at, gradient = after, new_gradient
            self.iterations += 1
            self._is_stopped = self._watch is not None and self._watch(self.theta)

    def _weights_gap(self, at: Evaluation) -> float:
        """The gap, were the bias optimal for these weights."""
        return float(at.gradient[:, :-1].square().sum()) / (2 * self._l2)

    def _enough(self, at: Evaluation, tol: float) -> float:
        return max(tol * at.value, self._slack)

    def _balance(self, at: Evaluation, tol: float, dtype: torch.dtype) -> Evaluation:
        """Newton steps of the bias alone: the certificate charges every imbalance in full."""
        enough = self._enough(at, tol)
        if at.gap <= enough:
            return at
        if at.bias_hessian is None:
            at = self._problem.evaluate(self.theta, self._l2, dtype, bias_hessian=True)
        assert at.bias_hessian is not None
        inverse = torch.linalg.pinv(at.bias_hessian, hermitian=True)
        while at.gap > enough and self._weights_gap(at) <= enough:
            theta = self.theta.clone()
            theta[:, -1] -= inverse @ at.gradient[:, -1]
            after = self._problem.evaluate(theta, self._l2, dtype)
            if after.gap > at.gap / 2:
                break
            self.theta, at = theta, after
            if dtype == torch.float32:
                break  # its rounding hides more
        return at

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        q, shares = -gradient, []
        for step, change, curvature in reversed(self._pairs):
            share = float((step * q).sum()) / curvature
            shares.append(share)
            q -= share * change
        if self._pairs:
            _, change, curvature = self._pairs[-1]
            q *= curvature / float(change.square().sum())
        for (step, change, curvature), share in zip(self._pairs, reversed(shares), strict=True):
            q += (share - float((change * q).sum()) / curvature) * step
        return q

    def _search(
        self, at: Evaluation, step: torch.Tensor, dtype: torch.dtype
    ) -> tuple[float, torch.Tensor, Evaluation] | None:
        """A step size that meets the Wolfe conditions, with the point there; None where rounding hides it."""
        noise = _NOISE[dtype] * at.value
        slope = float((at.gradient * step).sum())
        low, low_slope, high, high_slope, t = 0.0, slope, float("inf"), 0.0, 1.0
        in_a_row = 0  # trials that went too far
        for _ in range(_TRIALS):
            theta = self.theta + t * step
            after = self._problem.evaluate(theta, self._l2, dtype)
            new_slope = float((after.gradient * step).sum())
            decrease = after.value - at.value
            falls = decrease <= 1e-4 * t * slope or (decrease <= noise and new_slope <= -0.8 * slope)
            if not falls:
                high, high_slope, in_a_row = t, new_slope, in_a_row + 1
            elif new_slope < 0.9 * slope:
                low, low_slope, in_a_row = t, new_slope, 0
            else:
                return t, theta, after
            if high == float("inf"):
                t *= 2
            else:
                secant = low_slope / (low_slope - high_slope) if high_slope > 0 else 0.5
                t = low + min(max(secant, 0.1), 0.9 if in_a_row < 2 else 0.2) * (high - low)
        return None
