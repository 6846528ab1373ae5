"""The generalised Gauss-Newton matrix of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad, jvp, vjp

from thermoscope.nests import leaves, mapped

from ..empirical_risk.parameters import Tensors
from .matrix import CurvatureMatrix, LocalLoss, Multiply
from .retained_graph import graph_leaves, pulled_back

__all__ = ["GaussNewton"]


@dataclass(frozen=True)
class GaussNewton(CurvatureMatrix):
    """G = J^T (d2 loss / d outputs2) J, with J the Jacobian of the model's outputs (Schraudolph 2002)."""

    name = "gauss_newton"
    decay = 1.0

    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        """G v: forward through the model, through the loss's gradient, and back through the model."""
        parameters = dict(loss.parameters)
        at: Any = jvp(loss.outputs, (parameters,), (dict(vector),))
        curved = jvp(grad(loss.of_outputs), (at[0],), (at[1],))[1]
        result: Tensors = vjp(loss.outputs, parameters)[1](curved)[0]
        return result

    def linear_map(self, loss: LocalLoss) -> Multiply:
        """G v with every factor pulled back on a graph."""
        at = graph_leaves(loss.parameters)
        inputs = list(at.values())
        with torch.enable_grad():
            result = loss.outputs(at)
            z = [t for t in leaves(result, torch.Tensor) if t.requires_grad]
            # J^T u is linear in u: its derivative by u, times v, is J v, wherever u is.
            u = [torch.zeros_like(t, requires_grad=True) for t in z]
            pulled = torch.autograd.grad(z, inputs, u, create_graph=True, allow_unused=True)
            cut = [t.detach().requires_grad_() for t in z]
            rest = iter(cut)
            alone = mapped(result, torch.Tensor, lambda t: next(rest) if t.requires_grad else t)
            slope = torch.autograd.grad(loss.of_outputs(alone), cut, create_graph=True, allow_unused=True)

        def multiply(vector: Tensors) -> Tensors:
            along = pulled_back(pulled, u, list(vector.values()))
            curved = pulled_back(slope, cut, along)
            return dict(zip(at, pulled_back(z, inputs, curved), strict=True))

        return multiply
