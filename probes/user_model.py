"""The user's model: what it is beneath its wrappers, and how it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from thermoscope.batches import as_tensor, label_key, output_for
from thermoscope.errors import ProbeError
from thermoscope.model_state import in_eval_mode
from thermoscope.nests import mapped
from thermoscope.random_state import preserved_random_state

__all__ = [
    "Forward",
    "default_forward",
    "device_of",
    "held_fixed",
    "outcome",
    "plain_arithmetic",
    "require_forward",
    "to_device",
    "unwrap",
]

Forward: TypeAlias = Callable[[nn.Module, Any], tuple[Any, Any]]


@contextmanager
def plain_arithmetic(device_type: str) -> Iterator[None]:
    """Compute as always, whatever modes the caller is in: no gradients, autocast or inference mode."""
    # In this order: leaving inference mode switches gradients on.
    with torch.inference_mode(False), torch.no_grad(), torch._C.DisableTorchFunction():
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            with torch.autocast(device_type, enabled=False):
                yield
        else:
            yield


@contextmanager
def held_fixed(model: nn.Module, *loaders: object) -> Iterator[None]:
    """Eval mode and no gradients; modes, random streams and the loaders' own are restored on leaving."""
    with preserved_random_state(*loaders), in_eval_mode(model), torch.no_grad():
        yield


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Run a batch `(x, y, ...)`, or a dict with labels under `labels`, `label`, `y`, `targets` or `target`.

    Returns:
        The model's output and the labels.

    Raises:
        ProbeError: for a batch of another form, which needs a `forward` function.
    """
    key = label_key(batch)
    if key is None:
        raise ProbeError(
            "batches are neither (x, y) nor dicts with labels; pass "
            "forward=lambda model, batch: (output, labels)."
        )
    remedy = "pass forward=lambda model, batch: (output, labels)"
    return output_for(model, batch, ProbeError, remedy), batch[key]


def outcome(forward: Forward, model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """The output and the labels that a forward function gives.

    Raises:
        ProbeError: if it gives anything but a pair.
    """
    given: Any = forward(model, batch)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ProbeError(
            f"the forward function gave a {type(given).__name__}; it has to return a pair (output, labels)."
        )
    return given[0], given[1]


def require_forward(forward: Any) -> None:
    """Refuse a forward function that cannot be called with a model and a batch, as far as it tells.

    Raises:
        ProbeError: if it cannot.
    """
    if not _takes_two(forward):
        raise ProbeError(f"forward={forward!r} is no function (model, batch) -> (output, labels).")


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:  # also of what cannot be called at all
        return False
    except ValueError:
        return callable(function)
    return True


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DDP and `torch.compile` wrappers."""
    if isinstance(model, nn.DataParallel):
        raise ProbeError("nn.DataParallel runs copies of the model that hooks cannot follow; use DDP.")
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrap(inner) if isinstance(inner, nn.Module) else model


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer is."""
    tensors = (t for group in (model.parameters(), model.buffers()) for t in group)
    return next((t.device for t in tensors), torch.device("cpu"))


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors, and NumPy's arrays of numbers, as tensors on the device."""

    def move(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value.to(device)  # type: ignore[arg-type]  # torch's stub is wrong
        if isinstance(value, np.ndarray):
            value = as_tensor(value)
        return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    return mapped(batch, (torch.Tensor, PackedSequence, np.ndarray), move)
