"""The loss of one batch as a function of chosen parameters, for torch to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from .data import examples_in, leaves
from .errors import HessianError
from .hvp import counted_saves, evaluating
from .linearize import Tensors
from .parameters import select_parameters

__all__ = ["Objective", "call_with", "non_finite"]


class Objective:
    """A model and its mean loss over a batch.

    Attributes:
        model: the user's; read at each call, never changed.
        layout: shape of each chosen parameter.
        size: n, their number of entries.
        device: where they are.
        dtype: to compute in; None for the model's own.
        vector_dtype: of vectors (n,), float32 or float64.
        rounding: of the coarsest dtype that is computed in, relative.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None,
        batch_loss: Callable[[nn.Module, Any], torch.Tensor] | None,
        parameters: str | list[str] | None,
        dtype: torch.dtype | None,
    ):
        if (loss_fn is None) == (batch_loss is None):
            raise HessianError("give either loss_fn, for batches (x, y), or batch_loss, for any other.")
        self.model, self.dtype = model, dtype
        self._loss_fn, self._batch_loss = loss_fn, batch_loss
        self._selected = select_parameters(model, parameters)
        self.layout = {name: tuple(p.shape) for name, p in self._selected.items()}
        self.size = sum(p.numel() for p in self._selected.values())
        self.device = next(iter(self._selected.values())).device
        kinds = {dtype or p.dtype for p in self._selected.values()}
        self.vector_dtype = torch.float64 if torch.float64 in kinds else torch.float32
        self.rounding = max((torch.finfo(kind).eps for kind in kinds), default=0.0)

    def weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Copies of the chosen parameters, and all else that the model's state has."""

        def copy(t: torch.Tensor) -> torch.Tensor:
            return t.detach().to(self.dtype if t.is_floating_point() else None, copy=True)

        others = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return (
            {name: copy(p) for name, p in self._selected.items()},
            {name: copy(t) for name, t in others.items() if name not in self._selected},
        )

    def loss(self, parameters: Tensors, fixed: Tensors, batch: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        return call_with(self.model, self._batch_loss or self._pair_loss, {**parameters, **fixed}, batch)

    def outputs(self, parameters: Tensors, fixed: Tensors, batch: Any) -> torch.Tensor:
        """The model's outputs.

        Raises:
            HessianError: if the loss is not a function of them.
        """
        if self._loss_fn is None:
            raise HessianError("the Gauss-Newton matrix needs the model's outputs; give loss_fn.")
        return call_with(self.model, lambda model, batch: model(batch[0]), {**parameters, **fixed}, batch)

    def loss_of_outputs(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The mean loss of a batch whose outputs are known."""
        assert self._loss_fn is not None
        return self._loss_fn(outputs, batch[1])

    def _pair_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.loss_of_outputs(model(batch[0]), batch)

    def memory_per_example(self, batch: Any) -> float:
        """Bytes that autograd keeps for an example of this batch.

        Raises:
            HessianError: if the loss is no finite scalar that depends on the chosen parameters.
        """
        if self._loss_fn is not None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise HessianError(
                "a batch of the data is no pair (x, y); give batch_loss, a function of model and batch."
            )
        parameters, fixed = self.weights()
        at = {name: p.requires_grad_() for name, p in parameters.items()}
        with evaluating(self.model), torch.enable_grad(), counted_saves() as saved:
            loss = self.loss(at, fixed, batch)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                shape = tuple(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise HessianError(f"the loss is no scalar but {shape}; return the mean over the batch.")
            if not bool(loss.isfinite().all()):
                raise non_finite(float(loss.detach()))
            found: Any = [None] * len(at)
            if loss.requires_grad:
                found = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
        if all(gradient is None for gradient in found):
            raise HessianError(
                f"the loss does not depend on any of the chosen parameters ({', '.join(list(at)[:3])}); is "
                "there a detach(), item() or no_grad() on the way, or are they not used?"
            )
        held = {t.untyped_storage().data_ptr() for t in (*at.values(), *fixed.values(), *leaves(batch))}
        return sum(size for pointer, size in saved.items() if pointer not in held) / examples_in(batch)


def call_with(
    model: nn.Module, function: Callable[[nn.Module, Any], torch.Tensor], state: Tensors, batch: Any
) -> torch.Tensor:
    """function(model, batch) as if the model had these parameters and buffers."""
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    result: torch.Tensor = functional_call(_Calling(model, function), named, (batch,))
    return result


class _Calling(nn.Module):
    """A function of the model as a module, which is what `functional_call` takes."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Any], torch.Tensor]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Any) -> torch.Tensor:
        return self.function(self.model, batch)


def non_finite(loss: float) -> HessianError:
    """What to say of such a loss."""
    return HessianError(f"the loss is {loss}; look for overflow or NaN in the weights and in the data.")
