"""Products of curvature matrices with a vector, for one batch, in every way that torch offers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.func import grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .linearize import Product, Tensors

__all__ = [
    "MODES",
    "LossOf",
    "Mode",
    "OutputsOf",
    "counted_saves",
    "difference",
    "differentiated",
    "evaluating",
    "gauss_newton_product",
    "hessian_product",
    "retained_graph",
]

Mode = Literal["forward_reverse", "reverse_reverse", "retained", "linearized"]
MODES: tuple[Mode, ...] = get_args(Mode)

LossOf = Callable[[Tensors, Tensors, Any], torch.Tensor]
"""Maps (parameters, fixed state, batch) to the batch's mean loss."""
OutputsOf = Callable[[Tensors, Tensors, Any], torch.Tensor]
"""Maps (parameters, fixed state, batch) to the model's outputs."""


def hessian_product(loss: LossOf) -> Product:
    """H v as the Jacobian-vector product of the gradient: forward over reverse (Pearlmutter 1994)."""

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        gradient = grad(lambda p: loss(p, fixed, batch))
        result: Tensors = jvp(gradient, (dict(parameters),), (dict(vector),))[1]
        return result

    return product


def gauss_newton_product(outputs: OutputsOf, loss: Callable[[torch.Tensor, Any], torch.Tensor]) -> Product:
    """G v = J^T (d2 loss / d outputs2) J v, with J the Jacobian of the model's outputs (Schraudolph 2002)."""

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        def model(p: Tensors) -> torch.Tensor:
            return outputs(p, fixed, batch)

        def gradient(z: torch.Tensor) -> torch.Tensor:
            slope: torch.Tensor = grad(loss)(z, batch)
            return slope

        at: Any = jvp(model, (dict(parameters),), (dict(vector),))
        curved = jvp(gradient, (at[0],), (at[1],))[1]
        result: Tensors = vjp(model, dict(parameters))[1](curved)[0]
        return result

    return product


def difference(one: Product, other: Product) -> Product:
    """The product with A - B."""

    def product(parameters: Tensors, vector: Tensors, fixed: Tensors, batch: Any) -> Tensors:
        a, b = one(parameters, vector, fixed, batch), other(parameters, vector, fixed, batch)
        return {name: a[name] - b[name] for name in a}

    return product


def retained_graph(
    loss: LossOf, parameters: Tensors, fixed: Tensors, batch: Any
) -> Callable[[Tensors], Tensors]:
    """H v by reverse over reverse; the gradient's graph serves every v."""
    at = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    with torch.enable_grad():
        value = loss(at, fixed, batch)
        gradient = torch.autograd.grad(value, list(at.values()), create_graph=True, allow_unused=True)
    return partial(differentiated, at, gradient)


def differentiated(
    at: Tensors, gradient: Sequence[torch.Tensor | None], vector: Tensors
) -> dict[str, torch.Tensor]:
    """The gradient of (gradient . v), on the gradient's graph, which stays; None is a parameter not used."""
    curved = [(g, name) for g, name in zip(gradient, at, strict=True) if g is not None and g.requires_grad]
    if not curved:  # linear in every parameter
        return {name: torch.zeros_like(p) for name, p in at.items()}
    found = torch.autograd.grad(
        [g for g, _ in curved],
        list(at.values()),
        [vector[name] for _, name in curved],
        retain_graph=True,
        allow_unused=True,
    )
    return {
        name: torch.zeros_like(p) if h is None else h for (name, p), h in zip(at.items(), found, strict=True)
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, on kernels that can be differentiated twice; as it was afterwards.

    Flash attention, cuDNN's and oneDNN's RNNs cannot.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module, _ in modes):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(warnings.catch_warnings())
            # torch warns of itself when it first loads its forward derivatives.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def counted_saves() -> Iterator[dict[int, int]]:
    """Bytes of the tensors that autograd saves meanwhile, by storage."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
