"""A loss over a fixed data set: the exact mean, its gradient and its curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .curvature import CurvatureOperator
from .data import examples_in, pieces
from .errors import HessianError
from .hvp import Curvature, Mode, difference, gauss_newton_of, hessian_of
from .methods import Methods
from .objective import Objective, non_finite
from .parameters import flatten, split
from .passes import Passes
from .team import Team

__all__ = ["Loss"]


class Loss:
    """L(theta) = (1/N) sum_i loss(model(x_i; theta), y_i) over fixed data, plus weight decay on request.

        loss = Loss(model, F.cross_entropy, data)
        spectrum = extreme_eigenpairs(loss.hessian(), largest=20, smallest=3)

    The mean is over examples, however they are batched, and sums are accumulated in float64. The model is
    evaluated in eval mode, and left as it was: weights, modes, gradients, random streams. Weights are read
    at each call, so that one `Loss` follows a model through its training.

    Args:
        model: any module.
        loss_fn: maps (model(x), y) of a batch (x, y) to its *mean* loss, as `F.cross_entropy` does. None if
            `batch_loss` is given.
        data: a list of batches, a `DataLoader` that gives the same examples at each pass, a map-style
            `Dataset`, or tensors (x, y). See `fixed_subset`.
        parameters: name globs of those to differentiate by ("fc*", ["layer1.*"]); all by default that
            require a gradient.
        batch_loss: instead of `loss_fn`, for other batches than (x, y), or models that return their loss:
            maps (model, batch) to the batch's mean loss.
        weight_decay: adds weight_decay / 2 ||theta||^2 over these parameters.
        dtype: compute in this one, the model itself staying as it is; by default its own.
        count: maps a batch to the number of terms in its mean, where that is not its number of examples
            (tokens, say).
        memory_limit: bytes that products may use beyond weights and data; larger batches are split, and
            linear maps and graphs are kept only if they fit. By default a quarter of the machine's memory,
            or of the GPU's.
        check: look whether the loss is a mean over examples that is the same at each pass.
        team: the processes that each have a part of the data.

    Raises:
        HessianError: for a loss that is no finite scalar, is no mean over examples, does not depend on the
            parameters, or is another one at a second pass over the data.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None,
        data: Any,
        *,
        parameters: str | list[str] | None = None,
        batch_loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
        weight_decay: float = 0.0,
        dtype: torch.dtype | None = None,
        count: Callable[[Any], int] | None = None,
        memory_limit: int | None = None,
        check: bool = True,
        team: Team | None = None,
    ):
        self.objective = Objective(model, loss_fn, batch_loss, parameters, dtype)
        self.weight_decay = weight_decay
        self.layout, self.size = self.objective.layout, self.objective.size
        self.device, self.vector_dtype = self.objective.device, self.objective.vector_dtype
        self._passes = Passes(self.objective, data, count, memory_limit, team)
        self._methods: dict[str, Methods] = {}
        if check:
            self._check_mean()
            self._check_passes()
        else:
            self.value()

    @property
    def examples(self) -> int:
        """That the mean is over (terms, if `count` says so)."""
        return self._passes.examples

    # -- the loss and its derivatives ---------------------------------------------------------------

    def value(self) -> float:
        """L at the model's weights (nats for a cross-entropy)."""
        value = float(self.along(np.zeros((0, self.size)), np.zeros((1, 0)))[0])
        if not math.isfinite(value):
            raise non_finite(value)
        return value

    def gradient(self) -> npt.NDArray[np.float64]:
        """The gradient, (n,)."""
        if self._passes.team is not None:
            self._passes.team.announce_gradient(self.objective)
        parameters, fixed = self.objective.weights()
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        parts = split(total, self.layout)

        def add(batch: Any, n: int) -> None:
            at = {name: p.detach().requires_grad_() for name, p in parameters.items()}
            with torch.enable_grad():
                loss = self.objective.loss(at, fixed, batch)
                found = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
            for part, g in zip(parts.values(), found, strict=True):
                if g is not None:
                    part.add_(g, alpha=n)

        n = self._passes.each(add)
        gradient = self._passes.summed(total) / n + self.weight_decay * flatten(parameters, torch.float64)
        if not bool(gradient.isfinite().all()):
            raise HessianError("the gradient of the loss is not finite; look at the weights and the data.")
        return gradient.cpu().numpy()

    def along(self, directions: Any, coefficients: Any) -> npt.NDArray[np.float64]:
        """L at theta + sum_j coefficients[i, j] directions[j], for all i in one pass over the data: (p,).

        Args:
            directions: (d, n).
            coefficients: (p, d).
        """
        real: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        rows = torch.atleast_2d(torch.as_tensor(directions, **real))
        weights = torch.as_tensor(coefficients, **real)
        if self._passes.team is not None:
            self._passes.team.announce_along(self.objective, rows, weights)
        parameters, fixed = self.objective.weights()
        theta = flatten(parameters)
        points = len(weights)
        total, decay = torch.zeros(points, **real), torch.zeros(points, **real)

        def at(i: int) -> torch.Tensor:
            if not bool(weights[i].any()):
                return theta
            shifted = theta.to(torch.float64, copy=True)
            for row, weight in zip(rows, weights[i].tolist(), strict=True):
                shifted = shifted.add_(row, alpha=weight)
            return shifted.to(theta.dtype)

        def add(batch: Any, n: int) -> None:
            losses = []
            for i in range(points):
                here = {k: v.to(parameters[k].dtype) for k, v in split(at(i), self.layout).items()}
                losses.append(self.objective.loss(here, fixed, batch).double())
            total.add_(torch.stack(losses), alpha=n)

        with torch.no_grad():
            n = self._passes.each(add)
            if self.weight_decay:
                for i in range(points):
                    decay[i] = self.weight_decay / 2 * at(i).double().square().sum()
        values: npt.NDArray[np.float64] = (self._passes.summed(total) / n + decay).cpu().numpy()
        return values

    def hessian(self, mode: Mode | None = None) -> CurvatureOperator:
        """The Hessian H at the model's present weights, as a scipy `LinearOperator`.

        Args:
            mode: how its products are computed: "linearized" (Jacobian-vector product of the gradient,
                what does not depend on the vector kept), "retained" (gradient of gradient times vector, the
                graphs kept), or "reverse_reverse" and "forward_reverse" (the same two, nothing kept). By
                default the first that works and fits `memory_limit`; see `Choice`. They agree to rounding.
        """
        return self._operator(hessian_of(self.objective.loss), mode)

    def gauss_newton(self, mode: Mode | None = None) -> CurvatureOperator:
        """The generalised Gauss-Newton matrix G = J^T (d2 loss / d outputs2) J; positive semidefinite."""
        return self._operator(self._gauss_newton(), mode)

    def residual(self, mode: Mode | None = None) -> CurvatureOperator:
        """H - G: what the curvature of the model itself adds, weight decay belonging to G."""
        return self._operator(
            difference("residual", hessian_of(self.objective.loss), self._gauss_newton()), mode
        )

    def _gauss_newton(self) -> Curvature:
        return gauss_newton_of(self.objective.outputs, self.objective.loss_of_outputs)

    def _operator(self, curvature: Curvature, mode: Mode | None) -> CurvatureOperator:
        methods = self._methods.setdefault(curvature.name, Methods(self._passes, curvature))
        shift = 0.0 if curvature.name == "residual" else self.weight_decay
        return CurvatureOperator(methods, self._passes, mode, shift)

    # -- is it what it should be? Scale-aware: rounding passes, whatever the size of the numbers ------

    @property
    def _tolerance(self) -> float:
        return 1e-9 if self.vector_dtype == torch.float64 else 1e-4

    def _check_mean(self) -> None:
        batch, n = self._passes.first_piece(2**62)
        parts = pieces(batch, -(-examples_in(batch) // 2))
        if len(parts) < 2:
            return
        parameters, fixed = self.objective.weights()
        with self._passes.evaluating(), torch.no_grad():
            whole = float(self.objective.loss(parameters, fixed, batch).double())
            by_part = [float(self.objective.loss(parameters, fixed, p).double()) for p in parts]
        mean = sum(value * self._passes.count(p) for value, p in zip(by_part, parts, strict=True)) / n
        if abs(mean - whole) > self._tolerance * max(map(abs, (whole, *by_part))):
            raise HessianError(
                f"the loss of a batch is {whole:.6g}, but the mean over its two halves {mean:.6g}: it is no "
                "mean over examples. Use reduction='mean', say with count= what the mean is over, or take "
                "out what depends on the other examples of the batch."
            )

    def _check_passes(self) -> None:
        with self._passes.evaluating():  # the second pass as random as the first
            first, n = self.value(), self.examples
            second = self.value()
        if self.examples != n or abs(first - second) > self._tolerance * abs(first):
            raise HessianError(
                f"a second pass over the data gave {self.examples} examples and a loss of {second:.8g}, the "
                f"first {n} and {first:.8g}: switch off augmentation and dropout, and give a fixed set of "
                "examples (fixed_subset reads one)."
            )
