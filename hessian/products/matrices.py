"""Products of curvature matrices with a vector, for one batch, in every way that torch offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.func import grad, jvp, vjp

from thermoscope.nests import leaves, mapped

from ..empirical_risk.parameters import Tensors
from .linearized import Product

__all__ = [
    "MODES",
    "Curvature",
    "LossOf",
    "Mode",
    "Multiply",
    "OutputsOf",
    "difference",
    "differentiated",
    "gauss_newton_of",
    "hessian_of",
]

Mode = Literal["linearized", "retained", "reverse_reverse", "forward_reverse"]
MODES: tuple[Mode, ...] = get_args(Mode)

LossOf = Callable[[Tensors, Tensors, Any], torch.Tensor]
"""Maps (parameters, fixed state, batch) to the batch's mean loss."""
OutputsOf = Callable[[Tensors, Tensors, Any], Any]
"""Maps (parameters, fixed state, batch) to the model's outputs."""
Multiply = Callable[[Tensors], Tensors]
"""Maps a vector to its product with a matrix."""


@dataclass(frozen=True)
class Curvature:
    """A kind of curvature matrix of one batch, by its products, in both ways to differentiate twice.

    Attributes:
        name: "hessian", "gauss_newton" or "residual".
        product: forward over reverse, a function to be traced.
        retained: maps (parameters, fixed state, batch) to the product by reverse over reverse, on graphs that
            serve every vector.
    """

    name: str
    product: Product
    retained: Callable[[Tensors, Tensors, Any], Multiply]


def hessian_of(loss: LossOf) -> Curvature:
    """H, the second derivative of the loss."""

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        """H v as the Jacobian-vector product of the gradient (Pearlmutter 1994)."""
        gradient = grad(lambda p: loss(p, fixed, batch))
        result: Tensors = jvp(gradient, (dict(parameters),), (dict(vector),))[1]
        return result

    def retained(parameters: Tensors, fixed: Tensors, batch: Any) -> Multiply:
        at = _leaves_of_a_graph(parameters)
        with torch.enable_grad():
            value = loss(at, fixed, batch)
            gradient = torch.autograd.grad(value, list(at.values()), create_graph=True, allow_unused=True)
        return partial(differentiated, at, gradient)

    return Curvature("hessian", product, retained)


def gauss_newton_of(outputs: OutputsOf, loss: Callable[[Any, Any], torch.Tensor]) -> Curvature:
    """G = J^T (d2 loss / d outputs2) J, with J the Jacobian of the model's outputs (Schraudolph 2002)."""

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        def model(p: Tensors) -> Any:
            return outputs(p, fixed, batch)

        def gradient(z: Any) -> Any:
            return grad(loss)(z, batch)

        at: Any = jvp(model, (dict(parameters),), (dict(vector),))
        curved = jvp(gradient, (at[0],), (at[1],))[1]
        result: Tensors = vjp(model, dict(parameters))[1](curved)[0]
        return result

    def retained(parameters: Tensors, fixed: Tensors, batch: Any) -> Multiply:
        at = _leaves_of_a_graph(parameters)
        inputs = list(at.values())
        with torch.enable_grad():
            result = outputs(at, fixed, batch)
            z = [t for t in leaves(result, torch.Tensor) if t.requires_grad]
            # J^T u is linear in u: its derivative by u, times v, is J v, wherever u is.
            u = [torch.zeros_like(t, requires_grad=True) for t in z]
            pulled = torch.autograd.grad(z, inputs, u, create_graph=True, allow_unused=True)
            cut = [t.detach().requires_grad_() for t in z]
            rest = iter(cut)
            alone = mapped(result, torch.Tensor, lambda t: next(rest) if t.requires_grad else t)
            slope = torch.autograd.grad(loss(alone, batch), cut, create_graph=True, allow_unused=True)

        def multiply(vector: Tensors) -> Tensors:
            along = pulled_back(pulled, u, list(vector.values()))
            curved = pulled_back(slope, cut, along)
            return dict(zip(at, pulled_back(z, inputs, curved), strict=True))

        return multiply

    return Curvature("gauss_newton", product, retained)


def difference(name: str, one: Curvature, other: Curvature) -> Curvature:
    """A - B."""

    def subtract(a: Tensors, b: Tensors) -> Tensors:
        return {name: a[name] - b[name] for name in a}

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        arguments = (parameters, vector, fixed, batch)
        return subtract(one.product(*arguments), other.product(*arguments))

    def retained(parameters: Tensors, fixed: Tensors, batch: Any) -> Multiply:
        first, second = one.retained(parameters, fixed, batch), other.retained(parameters, fixed, batch)
        return lambda vector: subtract(first(vector), second(vector))

    return Curvature(name, product, retained)


def _leaves_of_a_graph(parameters: Tensors) -> dict[str, torch.Tensor]:
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}


def differentiated(
    at: Tensors, gradient: Sequence[torch.Tensor | None], vector: Tensors
) -> dict[str, torch.Tensor]:
    """The gradient of (gradient . v), on the gradient's graph, which stays; None is a parameter not used."""
    found = pulled_back(gradient, list(at.values()), list(vector.values()))
    return dict(zip(at, found, strict=True))


def pulled_back(
    results: Sequence[torch.Tensor | None], inputs: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The gradient by the inputs of sum_i (results[i] . vectors[i]), on a graph that stays."""
    there = [(r, v) for r, v in zip(results, vectors, strict=True) if r is not None and r.requires_grad]
    if not there:  # none of them depends on any input
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(
        [r for r, _ in there], inputs, [v for _, v in there], retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(t) if f is None else f for t, f in zip(inputs, found, strict=True)]
