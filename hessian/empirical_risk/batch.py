"""One batch: the tensors in it, its examples, its parts, its labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from thermoscope.batches import LABEL_KEYS, as_tensor, label_key
from thermoscope.errors import HessianError
from thermoscope.nests import leaves, mapped

__all__ = [
    "examples_in",
    "moved",
    "pieces",
    "require_label_key",
    "size_of",
    "tensors_for_arrays",
    "twice",
]


def require_label_key(batch: Any) -> Any:
    """Where a batch has its labels, by the convention of `probes.default_forward`.

    Raises:
        HessianError: for a batch of another form.
    """
    key = label_key(batch)
    if key is None:
        raise HessianError(
            "a batch of the data is no pair (x, y), and no dict with labels under one of "
            f"{', '.join(map(repr, LABEL_KEYS))}; give batch_loss, a function of model and batch."
        )
    return key


def tensors_for_arrays(batch: Any) -> Any:
    """The batch with NumPy's arrays of numbers as tensors."""
    return mapped(batch, (np.ndarray, np.number, np.bool_), as_tensor)


def size_of(batch: Any) -> int | None:
    """The examples in a batch: the length that all its tensors have; None if they have none in common.

    Tensors without dimensions belong to every example.
    """
    lengths = set(_lengths(batch))
    return lengths.pop() if len(lengths) == 1 else None


def _lengths(batch: Any) -> Iterator[int]:
    for part in leaves(batch, (torch.Tensor, PackedSequence)):
        if isinstance(part, PackedSequence):
            yield int(part.batch_sizes[0])
        elif part.ndim:
            yield len(part)


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
        return mapped(
            batch, torch.Tensor, lambda tensor: tensor[start : start + size] if tensor.ndim else tensor
        )

    return [piece(start) for start in range(0, length, size)]


def twice(batch: Any) -> Any:
    """The batch with each example in it two times; None if it cannot be had."""
    if size_of(batch) is None or _has_packed(batch):
        return None
    return mapped(batch, torch.Tensor, lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)


def _has_packed(batch: Any) -> bool:
    return next(leaves(batch, PackedSequence), None) is not None


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch on the device, cut off from any graph; floating-point tensors in `dtype`, if one is given."""

    def move(t: Any) -> Any:
        if isinstance(t, PackedSequence):  # whose sizes stay on the CPU
            return t.to(device, dtype)  # type: ignore[arg-type]  # torch's stub is wrong
        there = t.detach().to(device, dtype if dtype is not None and t.is_floating_point() else None)
        return there.clone() if there.is_inference() else there

    return mapped(batch, (torch.Tensor, PackedSequence), move)
