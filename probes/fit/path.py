"""The way through strengths of regularisation: loosely past all of them, and to the end at the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from .metric import Gram, Metric
from .readings import Scores
from .softmax import Softmax
from .solver import Solution, minimise

__all__ = ["Fit", "Path"]

_FIRST = 1e-2  # nats: the gap of the first fit, before anything is known of the validation loss
_SHARE = 0.1  # of the validation loss's standard error: the gap at which a fit tells enough to choose by
_PATIENCE = 2  # strengths in a row that may fail to lower the validation loss
_REACH = 10.0  # how many times stronger or weaker a regularisation a metric serves for

Measure: TypeAlias = Callable[[torch.Tensor], Scores]


@dataclass(frozen=True)
class Fit:
    """A strength, where its fit ended, and what it is worth.

    Attributes:
        l2: the strength.
        solution: where the fit ended.
        valid: scores on the validation rows, if there are some.
        is_finished: whether it went on to the tolerance, or as far as it went.
    """

    l2: float
    solution: Solution
    valid: Scores | None
    is_finished: bool

    @property
    def valid_loss(self) -> float:
        """What chooses; without validation rows there is one fit only."""
        return self.valid.loss[0] if self.valid else 0.0

    @property
    def valid_se(self) -> float:
        """The validation loss's standard error."""
        return self.valid.loss[1] if self.valid else 0.0

    @property
    def slack(self) -> float:
        """The gap up to which it tells enough to choose by."""
        return _SHARE * self.valid_se


class Path:
    """Fits at several strengths, each from the one before.

    To tell which can be the best, a fit need not be finished: it ends at a gap of a tenth of the standard
    error of its validation loss. Those that can are finished then.

    Args:
        problem: to minimise.
        gram: of its rows.
        strengths: from strong to weak; a single one without validation rows.
        measure: scores on the validation rows, if there are some.
        tol: relative gap at which a fit is finished.
        max_iter: steps for each strength.

    Attributes:
        fits: those that were made, from strong to weak.
    """

    def __init__(
        self,
        problem: Softmax,
        gram: Gram,
        strengths: Sequence[float],
        measure: Measure | None,
        tol: float,
        max_iter: int,
    ):
        self._problem, self._gram, self._strengths = problem, gram, strengths
        self._measure, self._tol, self._max_iter = measure, tol, max_iter
        self._metric: tuple[float, Metric] | None = None
        self.fits: list[Fit] = []

    def follow(self, starts: Sequence[torch.Tensor]) -> None:
        """Fit strong strengths first, from the best of `starts`, until the validation loss rises."""
        last, *others = starts
        slack = _FIRST if len(self._strengths) > 1 else 0.0
        for l2 in self._strengths:
            fit = self._fit(l2, self._nearest([last, *others], l2), slack)
            while not fit.is_finished and fit.solution.gap > fit.slack:
                fit = self._fit(l2, fit.solution.theta, fit.slack, fit.solution.iterations)
            self.fits.append(fit)
            last, slack = fit.solution.theta, fit.slack
            if len(self.fits) - 1 - self.fits.index(_best(self.fits)) == _PATIENCE:
                break

    def finish(self) -> Fit:
        """The fit of least validation loss, brought to the tolerance.

        So are all that are within a standard error of it, so that the choice does not hang on how loosely, or
        from where, they were fitted.
        """
        while True:
            best = _best(self.fits)
            reach = best.valid_loss + best.valid_se
            waiting = [fit for fit in self.fits if not fit.is_finished and fit.valid_loss <= reach]
            if not waiting:
                return best
            fit = _best(waiting)
            finished = self._fit(fit.l2, fit.solution.theta, 0.0, fit.solution.iterations)
            self.fits[self.fits.index(fit)] = finished

    def _fit(self, l2: float, start: torch.Tensor, slack: float, steps: int = 0) -> Fit:
        """To the tolerance or up to a slack, where `steps` led to the start."""
        found = minimise(
            self._problem, self._near(l2), l2, start, self._tol, self._max_iter - steps, slack=slack
        )
        solution = replace(found, iterations=steps + found.iterations)
        went_on = slack == 0 or solution.iterations >= self._max_iter
        is_finished = went_on or found.gap <= self._tol * found.value
        return Fit(l2, solution, self._measure(found.theta) if self._measure else None, is_finished)

    def _nearest(self, starts: Sequence[torch.Tensor], l2: float) -> torch.Tensor:
        """The best point to begin from."""
        if len(starts) == 1:
            return starts[0]
        return min(starts, key=lambda theta: self._problem.evaluate(theta, l2, torch.float32).value)

    def _near(self, l2: float) -> Metric:
        """A metric that serves for this strength; to make one takes as long as dozens of steps."""
        if self._metric is None or not 1 / _REACH <= l2 / self._metric[0] <= _REACH * (1 + 1e-9):
            at = max(l2 / _REACH, min(self._strengths))
            self._metric = at, Metric(self._problem, self._gram, at)
        return self._metric[1]


def _best(fits: Sequence[Fit]) -> Fit:
    return min(fits, key=lambda fit: fit.valid_loss)
