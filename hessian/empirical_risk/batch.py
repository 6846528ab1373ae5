"""One batch: the tensors in it, its examples, its parts, its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from thermoscope.errors import HessianError

__all__ = [
    "examples_in",
    "label_key",
    "leaves",
    "mapped",
    "moved",
    "pieces",
    "size_of",
    "tensors_for_arrays",
    "twice",
]

_LABEL_KEYS = ("labels", "label", "y", "targets", "target")


def label_key(batch: Any) -> Any:
    """Where a batch has its labels: second in (x, y, ...), or the first of these names that a dict has.

    The convention of `probes.default_forward`.

    Raises:
        HessianError: for a batch of another form.
    """
    if isinstance(batch, Mapping):
        key: Any = next((k for k in _LABEL_KEYS if k in batch), None)
    else:
        key = 1 if isinstance(batch, Sequence) and len(batch) >= 2 else None
    if key is None:
        raise HessianError(
            "a batch of the data is no pair (x, y), and no dict with labels under one of "
            f"{', '.join(map(repr, _LABEL_KEYS))}; give batch_loss, a function of model and batch."
        )
    return key


def leaves(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch: a tensor, or tuples, lists and mappings of batches."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from leaves(value)


def mapped(batch: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The batch with each tensor changed, in the order of `leaves`."""
    return _mapped(batch, torch.Tensor, change)


def tensors_for_arrays(batch: Any) -> Any:
    """The batch with NumPy's arrays of numbers as tensors."""
    return _mapped(batch, (np.ndarray, np.number, np.bool_), _as_tensor)


def _mapped(batch: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, kind):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _mapped(value, kind, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(value, kind, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_mapped(value, kind, change) for value in batch)
    return batch


def _as_tensor(array: Any) -> Any:
    if array.dtype.kind not in "biufc":  # words, objects
        return array
    native = np.array(array, dtype=array.dtype.newbyteorder("="))  # a copy that torch may write to
    return torch.from_numpy(native)


def size_of(batch: Any) -> int | None:
    """The examples in a batch: the length that all its tensors have; None if they have none in common.

    Tensors without dimensions belong to every example.
    """
    lengths = set(_lengths(batch))
    return lengths.pop() if len(lengths) == 1 else None


def _lengths(batch: Any) -> Iterator[int]:
    if isinstance(batch, PackedSequence):
        yield int(batch.batch_sizes[0])
    elif isinstance(batch, torch.Tensor):
        if batch.ndim:
            yield len(batch)
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _lengths(value)


def examples_in(batch: Any) -> int:
    """Examples in a batch.

    Raises:
        HessianError: if its tensors do not agree on their number.
    """
    size = size_of(batch)
    if size is None:
        lengths = ", ".join(map(str, sorted(set(_lengths(batch)))))
        what = f"tensors of different lengths ({lengths})" if lengths else "no tensor that has a length"
        raise HessianError(
            f"a batch holds {what}, which does not tell its number of examples; pass count=, a function of a "
            "batch."
        )
    return size


def pieces(batch: Any, size: int) -> list[Any]:
    """The batch in parts of at most `size` examples; whole if it cannot be cut."""
    length = size_of(batch)
    if length is None or size >= length or _has_packed(batch):
        return [batch]

    def piece(start: int) -> Any:
        return mapped(batch, lambda tensor: tensor[start : start + size] if tensor.ndim else tensor)

    return [piece(start) for start in range(0, length, size)]


def twice(batch: Any) -> Any:
    """The batch with each example in it two times; None if it cannot be had."""
    if size_of(batch) is None or _has_packed(batch):
        return None
    return mapped(batch, lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)


def _has_packed(batch: Any) -> bool:
    if isinstance(batch, PackedSequence):
        return True
    if isinstance(batch, Mapping):
        return any(map(_has_packed, batch.values()))
    return isinstance(batch, (tuple, list)) and any(map(_has_packed, batch))


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch on the device, cut off from any graph; floating-point tensors in `dtype`, if one is given."""

    def move(t: torch.Tensor) -> torch.Tensor:
        there = t.detach().to(device, dtype if dtype is not None and t.is_floating_point() else None)
        return there.clone() if there.is_inference() else there

    if isinstance(batch, PackedSequence):  # whose sizes stay on the CPU
        packed: PackedSequence = batch.to(device, dtype)  # type: ignore[arg-type]  # torch's stub is wrong
        return packed
    if isinstance(batch, Mapping):
        return {key: moved(value, device, dtype) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device, dtype) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(moved(value, device, dtype) for value in batch)
    return move(batch) if isinstance(batch, torch.Tensor) else batch
