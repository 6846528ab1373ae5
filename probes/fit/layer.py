"""One layer's way through the strengths of regularisation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf

import numpy as np
import torch

from thermoscope.errors import ProbeError

from .features import Rows, Scaling
from .fitted import LinearClassifier, PathPoint
from .metric import Gram, Metric
from .path import Path
from .readings import Scores, scores
from .softmax import Softmax
from .solver import Solution, minimise
from .splits import Splits

__all__ = ["LayerFit"]

_WIDEST = 4096  # features whose Gram matrix conditions a fit
_GRAM_BYTES = 28  # per entry: the Gram matrix, a Hessian, its factor, and that in float32, with temporaries
_MORE_STEPS = 10  # steps in a row that may, where the descent is what is stopped
_EARLY_METRIC = 1.0  # of a descent that is stopped: directions of little variance, mostly noise, come last


class LayerFit:
    """Fits one layer along a path, and keeps the best point.

    Attributes:
        path: the fits so far.
        chosen: the one with the least validation loss; the last one without validation rows.
    """

    def __init__(self, splits: Splits, layer: str, memory: int, device: torch.device):
        self._splits, self.layer, self._device = splits, layer, device
        matrix = splits.tables["train"][layer]
        self.size = matrix.shape[1]
        self._scaling = Scaling.of(matrix, layer)
        self._widest = max(min(_WIDEST, int((memory / 2 / _GRAM_BYTES) ** 0.5)), 1)
        self._rows = {"train": self._read("train", memory // 2)}
        self._y = {name: torch.from_numpy(splits.classes(name)).to(device) for name in splits.tables}
        self._rows |= {name: self._read(name, 0) for name in splits.tables if name != "train"}
        self.path: list[PathPoint] = []
        self.chosen: PathPoint
        self._theta: torch.Tensor

    def run(
        self, strengths: Sequence[float], tol: float, max_iter: int, start: LinearClassifier | None
    ) -> None:
        """Fit the strengths, strong ones first, until the validation loss rises; finish the best."""
        problem = Softmax(self._rows["train"], self._y["train"], len(self._splits.present))
        starts = [problem.start()]
        if start is not None:
            starts.append(self._take_over(start, starts[0]))
        gram = Gram(self._rows["train"], self._widest)
        measure = partial(self.measure, "valid") if "valid" in self._rows else None
        path = Path(problem, gram, strengths, measure, tol, max_iter)
        path.follow(starts)
        best = path.finish()
        self.path = [self._point(fit.l2, tol, fit.solution, fit.valid) for fit in path.fits]
        self.chosen, self._theta = self.path[path.fits.index(best)], best.solution.theta

    def run_early_stopped(self, l2: float, tol: float, max_iter: int) -> None:
        """Descend from nothing, and keep the point on the way that has the least validation loss."""
        problem = Softmax(self._rows["train"], self._y["train"], len(self._splits.present))
        metric = Metric(problem, Gram(self._rows["train"], self._widest), _EARLY_METRIC)
        best, since = inf, 0

        def watch(theta: torch.Tensor) -> bool:
            nonlocal best, since
            loss, since = self.measure("valid", theta).loss[0], since + 1
            if loss < best:
                best, since, self._theta = loss, 0, theta
            return since == _MORE_STEPS

        self._theta = problem.start()
        watch(self._theta)
        iterations = minimise(problem, metric, l2, self._theta, tol, max_iter, watch).iterations
        at = problem.evaluate(self._theta, l2, torch.float64)
        kept = Solution(self._theta, at.value, at.gap, iterations)
        self.chosen = self._point(l2, tol, kept, self.measure("valid"))
        self.path.append(self.chosen)

    def measure(self, split: str, theta: torch.Tensor | None = None) -> Scores:
        """Scores on a split, of the chosen probe if no other is given."""
        return scores(self._rows[split], self._y[split], self._theta if theta is None else theta)

    def classifier(self) -> LinearClassifier:
        """The chosen probe, with all classes."""
        theta = self._theta.cpu().numpy()
        weight = np.zeros((self._splits.num_classes, self.size))
        bias = np.full(self._splits.num_classes, -inf)
        weight[self._splits.present], bias[self._splits.present] = theta[:, :-1], theta[:, -1]
        return LinearClassifier(weight, bias, self._scaling.mean.numpy(), self._scaling.scale.numpy())

    def _point(self, l2: float, tol: float, solution: Solution, valid: Scores | None) -> PathPoint:
        return PathPoint(
            layer=self.layer,
            l2=l2,
            objective=solution.value,
            gap=solution.gap,
            converged=solution.gap <= tol * solution.value,
            iterations=solution.iterations,
            valid_loss=valid.loss[0] if valid else None,
            valid_error=valid.error[0] if valid else None,
        )

    def _read(self, split: str, memory: int) -> Rows:
        matrix = self._splits.tables[split][self.layer]
        if matrix.shape[1] != self.size:
            raise ProbeError(
                f"layer {self.layer!r} has {matrix.shape[1]} features in {split} and {self.size} in train; "
                "extract both with the same reduction."
            )
        return Rows(matrix, self._scaling, memory, self._device, self._splits.num_classes)

    def _take_over(self, start: LinearClassifier, empty: torch.Tensor) -> torch.Tensor:
        """A classifier as a point to begin from, with classes that it did not know as in `empty`."""
        if start.weight.shape != (self._splits.num_classes, self.size):
            raise ProbeError(
                f"start has {start.weight.shape[0]} classes and {start.weight.shape[1]} features for layer "
                f"{self.layer!r}, not {self._splits.num_classes} and {self.size}; start from a fit of the "
                "same layers and labels, or from nothing."
            )
        present = self._splits.present
        theta = torch.from_numpy(np.c_[start.weight[present], start.bias[present]]).to(empty)
        return torch.where(theta[:, -1:].isfinite(), theta, empty)
