"""The loss of one batch as a function of chosen parameters, for torch to differentiate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from thermoscope.batches import named_logits, output_for
from thermoscope.errors import HessianError, first_line
from thermoscope.nests import leaves

from .batch import require_label_key
from .evaluating import evaluating
from .memory import counted_saves, ran_out
from .parameters import Tensors, device_of, select_parameters

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
        tolerance: by how much losses that should be equal may differ, relative.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], torch.Tensor] | None,
        batch_loss: Callable[[nn.Module, Any], torch.Tensor] | None,
        parameters: str | list[str] | None,
        dtype: torch.dtype | None,
    ):
        if not isinstance(model, nn.Module):
            raise HessianError(f"the model is a {type(model).__name__}; give an nn.Module.")
        if (loss_fn is None) == (batch_loss is None):
            raise HessianError(
                "give either loss_fn, for batches (x, y), or batch_loss, for any other: "
                "batch_loss=lambda model, batch: model(**batch).loss, say."
            )
        if not callable(loss_fn or batch_loss):
            raise HessianError(
                f"{loss_fn or batch_loss!r} cannot be called; give a function such as F.cross_entropy."
            )
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise HessianError(f"dtype is {dtype!r}; give a floating-point dtype such as torch.float64.")
        self.model, self.dtype = model, dtype
        self._loss_fn, self._batch_loss = loss_fn, batch_loss
        self._selected = select_parameters(model, parameters)
        self.layout = {name: tuple(p.shape) for name, p in self._selected.items()}
        self.size = sum(p.numel() for p in self._selected.values())
        self.device = device_of(self._selected)
        kinds = {dtype or p.dtype for p in self._selected.values()}
        self.vector_dtype = torch.float64 if torch.float64 in kinds else torch.float32
        self.rounding = max(torch.finfo(kind).eps for kind in kinds)
        self.tolerance = 1e-9 if kinds == {torch.float64} else max(1e-4, 8 * self.rounding)

    def weights(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Copies of the chosen parameters, and all else that the model's state has."""

        def copy(t: torch.Tensor) -> torch.Tensor:
            return t.detach().to(self.dtype if t.is_floating_point() else None, copy=True)

        others = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return (
            {name: copy(p) for name, p in self._selected.items()},
            {name: copy(t) for name, t in others.items() if name not in self._selected},
        )

    def in_double(self) -> Objective:
        """The same in float64."""
        return Objective(self.model, self._loss_fn, self._batch_loss, list(self._selected), torch.float64)

    def loss(self, parameters: Tensors, fixed: Tensors, batch: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        return _scalar(
            call_with(self.model, self._batch_loss or self._pair_loss, {**parameters, **fixed}, batch)
        )

    def outputs(self, parameters: Tensors, fixed: Tensors, batch: Any) -> Any:
        """The model's outputs, as `loss_fn` gets them.

        Raises:
            HessianError: if the loss is not a function of them.
        """
        if self._loss_fn is None:
            raise HessianError("the Gauss-Newton matrix needs the model's outputs; give loss_fn.")
        return call_with(self.model, _outputs, {**parameters, **fixed}, batch)

    def loss_of_outputs(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The mean loss of a batch whose outputs are known."""
        assert self._loss_fn is not None
        return _scalar(self._loss_fn(outputs, batch[require_label_key(batch)]))

    def _pair_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.loss_of_outputs(_outputs(model, batch), batch)

    def check_form(self, batch: Any) -> None:
        """Refuse a batch whose labels are not where they should be."""
        if self._loss_fn is not None:
            require_label_key(batch)

    @contextmanager
    def explained(self, batch: Any) -> Iterator[None]:
        """What the model or the loss raises for this batch, as a sentence; but not that memory ran out."""
        try:
            yield
        except HessianError:
            raise
        except Exception as error:
            if ran_out(error):
                raise
            own = {p.dtype for p in self._selected.values()}
            other = {t.dtype for t in leaves(batch, torch.Tensor) if t.is_floating_point()} - {
                self.dtype,
                *own,
            }
            kinds = [str(kind).removeprefix("torch.") for kind in (*other, *own)]
            hint = (
                f" (data of {kinds[0]} in a model of {kinds[-1]}: convert them, or give dtype=)"
                if other
                else ""
            )
            raise HessianError(
                f"the model or the loss fails on a batch of the data: {first_line(error)}{hint}."
            ) from error

    def memory(self, batch: Any) -> int:
        """Bytes that autograd keeps for this batch.

        Raises:
            HessianError: if the loss is no finite scalar that depends on the chosen parameters.
        """
        parameters, fixed = self.weights()
        at = {name: p.requires_grad_() for name, p in parameters.items()}
        with (
            evaluating(self.model),
            torch.enable_grad(),
            counted_saves() as saved,
            self.explained(batch),
        ):
            loss = self.loss(at, fixed, batch)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.is_floating_point():
                raise HessianError(
                    f"the loss is no scalar but {_form(loss)}; return the mean over the batch."
                )
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
        held = {
            t.untyped_storage().data_ptr()
            for t in (*at.values(), *fixed.values(), *leaves(batch, torch.Tensor))
        }
        return sum(size for pointer, size in saved.items() if pointer not in held)


def _outputs(model: nn.Module, batch: Any) -> Any:
    """What the model makes of a batch without its labels: where it names its logits, these."""
    require_label_key(batch)
    remedy = "leave out what it does not take, or give batch_loss, a function of model and batch"
    output = output_for(model, batch, HessianError, remedy)
    named = named_logits(output)
    return named if isinstance(named, torch.Tensor) else output


def _scalar(loss: torch.Tensor) -> torch.Tensor:
    return loss.reshape(()) if isinstance(loss, torch.Tensor) and loss.numel() == 1 else loss


def _form(loss: Any) -> str:
    if not isinstance(loss, torch.Tensor):
        return type(loss).__name__
    return str(loss.dtype).removeprefix("torch.") if loss.numel() == 1 else str(tuple(loss.shape))


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
