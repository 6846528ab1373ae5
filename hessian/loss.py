"""A loss over a fixed data set: the exact mean, its gradient and its curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermoscope.errors import HessianError

from .distributed import Team
from .empirical_risk.batch_loss import Objective, non_finite
from .empirical_risk.data_pass import Passes
from .empirical_risk.mean_check import MeanCheck
from .empirical_risk.parameters import flatten, split
from .products.choose import MODES, ProductModes, product_mode
from .products.curvature import CurvatureOperator
from .products.functional_hessian import FunctionalHessian
from .products.gauss_newton import GaussNewton
from .products.hessian import Hessian
from .products.matrix import CurvatureMatrix
from .products.mode import ProductMode

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
        loss_fn: maps the model's output and y to the *mean* loss of a batch, as `F.cross_entropy` does. None
            if `batch_loss` is given. A batch is (x, y, ...), the output being model(x), or a dict with labels
            y under "labels", "label", "y", "targets" or "target", the output being model(**rest). Of an
            output that has `logits`, it gets these. (`probes.default_forward` takes the same batches.)
        data: a list of batches, a `DataLoader` that gives the same examples at each pass, in whatever order,
            a map-style `Dataset`, or all examples as tensors (x, y). NumPy's arrays become tensors. See
            `fixed_subset`.
        parameters: name globs of those to differentiate by ("fc*", ["layer1.*"]); all by default that
            require a gradient.
        batch_loss: instead of `loss_fn`, for other batches than (x, y), or models that return their loss:
            maps (model, batch) to the batch's mean loss.
        weight_decay: adds weight_decay / 2 ||theta||^2 over these parameters.
        dtype: compute in this one, the model itself staying as it is; by default its own.
        count: maps a batch to the number of terms in its mean, where that is not its number of examples
            (tokens, say), or to the sum of their weights.
        memory_limit: bytes that products may use beyond weights and data; larger batches are split, and
            linear maps and graphs are kept only if they fit. By default a quarter of the machine's memory,
            or of the GPU's.
        check: look whether the loss of every batch is a mean over examples, and the same at a second pass.
            Whether the examples are the same is seen at every pass.
        team: the processes that each have a part of the data.

    Raises:
        HessianError: for a loss that is no finite scalar, is no mean over examples, does not depend on the
            parameters, or is another one at a second pass over the data.
    """

    # What is computed must be differentiable, whatever mode the caller is in.
    @torch.inference_mode(False)
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
        count: Callable[[Any], float] | None = None,
        memory_limit: int | None = None,
        check: bool = True,
        team: Team | None = None,
    ):
        if not math.isfinite(weight_decay):
            raise HessianError(f"weight_decay is {weight_decay}; give a finite number.")
        self.objective = Objective(model, loss_fn, batch_loss, parameters, dtype)
        self.weight_decay = weight_decay
        self.layout, self.size = self.objective.layout, self.objective.size
        self.device, self.vector_dtype = self.objective.device, self.objective.vector_dtype
        self._passes = Passes(self.objective, data, count, memory_limit, team)
        self._modes: dict[CurvatureMatrix, ProductModes] = {}
        if team is not None:
            team.know([Hessian(), GaussNewton(), FunctionalHessian()], MODES)
        if check:
            self._check()
        else:
            self.value()

    @property
    def examples(self) -> int:
        """That the mean is over; the number of terms where only `count` tells."""
        return self._passes.examples

    # -- the loss and its derivatives ---------------------------------------------------------------

    def value(self) -> float:
        """L at the model's weights (nats for a cross-entropy)."""
        value = float(self.along(np.zeros((0, self.size)), np.zeros((1, 0)))[0])
        if not math.isfinite(value):
            raise non_finite(value)
        return value

    @torch.inference_mode(False)
    def gradient(self) -> npt.NDArray[np.float64]:
        """The gradient, (n,)."""
        if self._passes.team is not None:
            self._passes.team.announce_gradient(self.objective)
        parameters, fixed = self.objective.weights()
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        parts = split(total, self.layout)

        def add(batch: Any, n: float) -> None:
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

    @torch.inference_mode(False)
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

        def add(batch: Any, n: float) -> None:
            losses = []
            for i in range(points):
                here = {k: v.to(parameters[k].dtype) for k, v in split(at(i), self.layout).items()}
                with self.objective.explained(batch):
                    losses.append(self.objective.loss(here, fixed, batch).double())
            total.add_(torch.stack(losses), alpha=n)

        with torch.no_grad():
            n = self._passes.each(add)
            for i in range(points):
                decay[i] = self._decay(at(i))
        values: npt.NDArray[np.float64] = (self._passes.summed(total) / n + decay).cpu().numpy()
        return values

    def _decay(self, theta: torch.Tensor) -> float:
        return self.weight_decay / 2 * float(theta.double().square().sum()) if self.weight_decay else 0.0

    def operator(self, matrix: CurvatureMatrix, mode: ProductMode | str | None = None) -> CurvatureOperator:
        """A curvature matrix at the model's present weights, as a scipy `LinearOperator`.

        Args:
            matrix: `Hessian()`, `GaussNewton()`, `FunctionalHessian()`, or one of your own.
            mode: how its products are computed: `Linearized()` (Jacobian-vector product of the gradient,
                what does not depend on the vector kept), `Retained()` (gradient of gradient times vector, the
                graphs kept), `ReverseReverse()` and `ForwardReverse()` (the same two, nothing kept), one of
                your own, or the name of one of the four, as `Spectrum.mode` records it. By default the first
                of the four that works and fits `memory_limit`; see `ModeChoice`. They agree to rounding.

        Raises:
            HessianError: if the matrix is not a `CurvatureMatrix`, if it or the mode cannot be hashed, or for
                a mode that does not exist or does not work for this loss.
        """
        if not isinstance(matrix, CurvatureMatrix):
            raise HessianError(
                f"{matrix!r} is not a curvature matrix; give Hessian(), GaussNewton(), FunctionalHessian(), "
                "or an instance of your own subclass of CurvatureMatrix."
            )
        asked = None if mode is None else product_mode(mode)
        for value in (matrix, asked):
            if type(value).__hash__ is None:
                raise HessianError(f"{value!r} can change; make its class a frozen dataclass.")
        modes = self._modes.setdefault(matrix, ProductModes(self._passes, matrix))
        return CurvatureOperator(modes, self._passes, asked, matrix.decay * self.weight_decay)

    def hessian(self, mode: ProductMode | str | None = None) -> CurvatureOperator:
        """The Hessian H; `mode` as in `operator`."""
        return self.operator(Hessian(), mode)

    def gauss_newton(self, mode: ProductMode | str | None = None) -> CurvatureOperator:
        """The generalised Gauss-Newton matrix G = J^T (d2 loss / d outputs2) J; positive semidefinite."""
        return self.operator(GaussNewton(), mode)

    def functional_hessian(self, mode: ProductMode | str | None = None) -> CurvatureOperator:
        """H - G: what the curvature of the model itself adds, weight decay belonging to G."""
        return self.operator(FunctionalHessian(), mode)

    def _check(self) -> None:
        check = MeanCheck(self._passes)
        total = 0.0

        def add(batch: Any, n: float) -> None:
            nonlocal total
            with torch.no_grad():
                total += check(batch, n) * n

        with self._passes.evaluating():  # the second pass as random as the first
            sums = torch.tensor(0.0, dtype=torch.float64, device=self.device)
            n = self._passes.each(add)
            first = float(self._passes.summed(sums + total)) / n
            first += self._decay(flatten(self.objective.weights()[0]))
            second = self.value()
        if not abs(first - second) <= self.objective.tolerance * abs(first):
            raise HessianError(
                f"a second pass over the same examples gave a loss of {second:.8g}, the first {first:.8g}: "
                "switch off what is random in the model or the loss."
            )
