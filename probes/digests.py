"""Digests: 64-bit sums that tell rows of numbers apart, and a name for a model's weights.

They find damage and mix-ups, not forgery.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from thermoscope.errors import ProbeError

__all__ = ["Digests", "array_digest", "input_digests", "mixed", "model_digest", "tensor_bytes"]

Digests = npt.NDArray[np.uint64]
_AT_ONCE = 2**18  # numbers that fit a processor's cache
_SEED = 20160104  # of the weights; a store's digests hold for this one


def array_digest(rows: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> int:
    """A digest of rows (n, ...) of an array, whose row numbers (n,) are given.

    That of all of them is the sum modulo 2**64 over parts, in whatever order they come.
    """
    return int(mixed(_row_digests(rows) + mixed(numbers.astype(np.uint64))).sum(dtype=np.uint64))


def input_digests(batch: Any, rows: int) -> Digests:
    """A digest of each example in a batch of `rows`, over all that the batch holds: uint64 (rows,).

    What has no entry per example, such as a sequence with time first, counts for every one of them.
    """
    total = np.zeros(rows, np.uint64)
    for part in _parts(batch, rows):
        total = mixed(total + _row_digests(part) + np.uint64(part.shape[1]))
    return total


def model_digest(model: nn.Module) -> str:
    """SHA-256 over a model's structure and the names, types, shapes and bytes of its state and buffers.

    Raises:
        ProbeError: if it has no weights yet.
    """
    digest = hashlib.sha256(_text(model).encode())
    buffers = dict(model.named_buffers())  # also those that are not saved
    for name, value in {**buffers, **model.state_dict()}.items():
        digest.update(f"\n{name} ".encode())
        _add_state(digest, name, value)
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """All bytes of a tensor of any layout, in the order of its elements: (bytes,)."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = torch.cat([tensor.int_repr().double().flatten(), tensor.dequantize().double().flatten()])
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().flatten()
    found: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return found


def mixed(words: Digests) -> Digests:
    """Words whose every bit depends on all bits of the given ones, one to one (SplitMix64's last step)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _row_digests(rows: npt.NDArray[Any]) -> Digests:
    """A sum over each row's words with odd weights: any change of one word changes it."""
    words = np.ascontiguousarray(rows).reshape(len(rows), -1)
    words = words.view(f"u{words.itemsize}")
    weights = _weights(words.shape[1])
    found = np.empty(len(words), np.uint64)
    step = max(1, _AT_ONCE // max(1, words.shape[1]))
    for start in range(0, len(words), step):
        part = slice(start, start + step)
        np.einsum("ij,j->i", words[part].astype(np.uint64), weights, out=found[part])
    return found


@lru_cache(maxsize=64)
def _weights(count: int) -> Digests:
    # Only a bit generator's raw words are promised never to change between versions of NumPy.
    words: Digests = np.random.PCG64(_SEED).random_raw(count)
    return words | np.uint64(1)


def _parts(batch: Any, rows: int) -> Iterator[npt.NDArray[Any]]:
    """What a batch holds, as words: (rows, words) where there is an entry per example, else (1, words)."""
    if isinstance(batch, torch.Tensor) and not batch.is_nested:
        if batch.numel():
            yield _words(tensor_bytes(batch), rows if batch.ndim and len(batch) == rows else 1)
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _parts(item, rows)
    elif isinstance(batch, (list, tuple, torch.Tensor)):
        items = list(batch.unbind() if isinstance(batch, torch.Tensor) else batch)
        if len(items) != rows or any(_has_entries(item, rows) for item in items):
            for item in items:
                yield from _parts(item, rows)
        else:
            yield np.array([input_digests(item, 1) for item in items])
    elif hasattr(batch, "__array_interface__"):  # NumPy's arrays, and images
        array = np.asarray(batch)
        if array.dtype == object:
            yield from _parts(array.tolist(), rows)
        elif array.size:
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            yield _words(flat, rows if array.ndim and len(array) == rows else 1)
    else:
        yield _words(np.frombuffer(_text(batch).encode() or b" ", np.uint8), 1)


def _has_entries(item: Any, rows: int) -> bool:
    return isinstance(item, (torch.Tensor, np.ndarray)) and item.ndim > 0 and len(item) == rows


def _words(data: npt.NDArray[np.uint8], rows: int) -> npt.NDArray[Any]:
    """Bytes as a matrix of words: of 32 bits at most, for two flips of a highest bit would cancel."""
    width = len(data) // rows
    return data.reshape(rows, width).view(f"u{next(size for size in (4, 2, 1) if width % size == 0)}")


def _add_state(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        if is_lazy(value) or value.is_meta:
            raise ProbeError(
                f"the model has no weights yet ({name!r} is empty); give it some, or run one batch through "
                "its lazy layers, before its features are extracted."
            )
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(tensor_bytes(value).data)
    elif isinstance(value, (tuple, list)):  # packed weights of quantised layers
        for item in value:
            _add_state(digest, name, item)
    else:
        digest.update(_text(value).encode())


def _text(value: Any) -> str:
    """What an object says of itself, without where in memory it is."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))
