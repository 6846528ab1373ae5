"""Products with the Hessian of a few examples, for the tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from thermoscope.errors import HessianError

from ..empirical_risk.parameters import flatten, split
from ..products.retained_graph import differentiated

__all__ = ["SampleHessian"]


class SampleHessian:
    """The Hessian of the loss of some examples, as its products; the graph of the gradient is kept.

    Args:
        model: whose buffers are copied, for they could be written to.
        parameters: those to differentiate by.
        loss: of the examples, given parameters and buffers by name.

    Raises:
        HessianError: for a loss that is no finite number.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, torch.Tensor],
        loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    ):
        self._layout = {name: tuple(p.shape) for name, p in parameters.items()}
        self._at = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
        buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
        with torch.enable_grad():
            value = loss({**self._at, **buffers})
            if value.numel() != 1 or not bool(value.isfinite().all()):
                raise HessianError(f"the loss is {value.detach().tolist()}; it must be a finite number.")
            found = torch.autograd.grad(value, list(self._at.values()), create_graph=True, allow_unused=True)
        self._gradient = dict(zip(self._at, found, strict=True))

    @property
    def flipped_gradient(self) -> torch.Tensor:
        """The gradient, the last layer's with the opposite sign, of length 1, (n,)."""
        last = list(self._at)[-1].rpartition(".")[0]
        signs = {name: -1.0 if name.rpartition(".")[0] == last else 1.0 for name in self._at}
        vector = flatten(
            {
                name: torch.zeros_like(self._at[name]) if g is None else signs[name] * g.detach()
                for name, g in self._gradient.items()
            }
        )
        length: torch.Tensor = vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
        return vector / length

    def multiply(self, vector: torch.Tensor) -> torch.Tensor:
        """H v, (n,): the gradient of (gradient . v)."""
        gradient = list(self._gradient.values())
        return flatten(differentiated(self._at, gradient, split(vector, self._layout)))
