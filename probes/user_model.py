"""The user's model: what it is beneath its wrappers, and how it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from thermoscope.errors import ProbeError

from .streams import preserved_random_state

__all__ = [
    "Forward",
    "default_forward",
    "device_of",
    "held_fixed",
    "label_key",
    "logits_of",
    "plain_arithmetic",
    "takes_two",
    "tensors_in",
    "to_device",
    "unwrap",
]

Forward: TypeAlias = Callable[[nn.Module, Any], tuple[Any, Any]]
_LABEL_KEYS = ("labels", "label", "y", "targets", "target")


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
    modes = [(module, module.training) for module in model.modules()]
    with preserved_random_state(*loaders), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


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
    if isinstance(batch, Mapping):
        inputs = {k: v for k, v in batch.items() if k != key}
        _require_arguments(model, inputs)
        return model(**inputs), batch[key]
    return model(batch[0]), batch[key]


def _require_arguments(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a dict whose entries the model's forward does not take by these names."""
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        raise ProbeError(
            f"the model cannot be called with a batch's entries {', '.join(map(repr, inputs))} ({error}); "
            "pass forward=lambda model, batch: (output, labels)."
        ) from error
    except ValueError:  # a forward without a signature
        pass


def takes_two(function: Any) -> bool:
    """Whether it can be called with two arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:  # also of what cannot be called at all
        return False
    except ValueError:
        return callable(function)
    return True


def label_key(batch: Any) -> Any:
    """Where in a batch its labels are, if it has one of the forms that `default_forward` knows."""
    if isinstance(batch, Mapping):
        return next((k for k in _LABEL_KEYS if k in batch), None)
    return 1 if isinstance(batch, Sequence) and len(batch) >= 2 else None


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
    """Move the tensors in a nest of tuples and mappings."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, PackedSequence):
        moved: PackedSequence = batch.to(device)  # type: ignore[arg-type]  # torch's stub is wrong
        return moved
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved_items = [to_device(value, device) for value in batch]
        return type(batch)(*moved_items) if hasattr(batch, "_fields") else moved_items
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        native = np.array(batch, dtype=batch.dtype.newbyteorder("="))  # a copy that torch may write to
        return torch.from_numpy(native).to(device)
    return batch


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors in a nest of tuples and mappings."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(item)


def logits_of(output: Any) -> torch.Tensor | None:
    """The tensor that is a model's answer: its output, what the output calls logits, or a tuple's first."""
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    return logits if isinstance(logits, torch.Tensor) else None
