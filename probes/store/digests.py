"""Digests: 64-bit sums that tell rows of numbers apart, and a name for a model's weights.

They find damage and mix-ups, not forgery.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..host import tensors_in

__all__ = ["Digests", "array_digest", "input_digests", "mixed", "model_digest"]

Digests = npt.NDArray[np.uint64]
_AT_ONCE = 2**18  # numbers that fit a processor's cache
_SAMPLE = 256  # numbers per example that tell one input from another
_SEED = 20160104  # of the weights; a store's digests hold for this one


def array_digest(rows: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> int:
    """A digest of rows (n, ...) of an array, whose row numbers (n,) are given.

    That of all of them is the sum modulo 2**64 over parts, in whatever order they come.
    """
    return int(mixed(_row_digests(rows) + mixed(numbers.astype(np.uint64))).sum(dtype=np.uint64))


def input_digests(batch: Any, rows: int) -> Digests:
    """A digest of each example in a batch of `rows`: uint64 (rows,).

    It covers evenly spread numbers of every tensor in the batch that has an entry per example.
    """
    total = np.zeros(rows, np.uint64)
    for tensor in tensors_in(batch):
        if tensor.ndim and len(tensor) == rows and tensor.numel():
            flat = tensor.detach().reshape(rows, -1)
            width = flat.shape[1]
            if width > _SAMPLE:
                flat = flat[:, torch.arange(_SAMPLE, device=flat.device) * width // _SAMPLE]
            words = flat.contiguous().view(torch.uint8).cpu().numpy()
            total = mixed(total + _row_digests(words) + np.uint64(width))
    return total


def model_digest(model: nn.Module) -> str:
    """SHA-256 over a model's structure and the names, types, shapes and bytes of its state."""
    digest = hashlib.sha256(re.sub(" at 0x[0-9a-f]+", "", repr(model)).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
