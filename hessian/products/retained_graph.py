"""Derivatives by reverse over reverse, on a graph that stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..empirical_risk.parameters import Tensors

__all__ = ["differentiated", "graph_leaves", "pulled_back"]


def graph_leaves(parameters: Tensors) -> dict[str, torch.Tensor]:
    """The same values as the beginning of a graph of their own."""
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
