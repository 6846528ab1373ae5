"""The Hessian of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.func import grad, jvp

from ..empirical_risk.parameters import Tensors
from .matrix import CurvatureMatrix, LocalLoss, Multiply
from .retained_graph import differentiated, graph_leaves

__all__ = ["Hessian"]


@dataclass(frozen=True)
class Hessian(CurvatureMatrix):
    """H, the second derivative of the loss."""

    name = "hessian"
    decay = 1.0

    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        """H v as the Jacobian-vector product of the gradient (Pearlmutter 1994)."""
        result: Tensors = jvp(grad(loss.at), (dict(loss.parameters),), (dict(vector),))[1]
        return result

    def linear_map(self, loss: LocalLoss) -> Multiply:
        """H v as the gradient of (gradient . v)."""
        at = graph_leaves(loss.parameters)
        with torch.enable_grad():
            value = loss.at(at)
            gradient = torch.autograd.grad(value, list(at.values()), create_graph=True, allow_unused=True)
        return partial(differentiated, at, gradient)
