"""What a pass over the data has read, as one number that no order of the examples changes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from thermoscope.nests import leaves

__all__ = ["fingerprint"]

_CHUNK = 1 << 22  # words at a time
_ODD = -7046029254386353131  # 2^64 / golden ratio, as a signed number


def fingerprint(batch: Any) -> int:
    """The sum over a batch's examples of a 64-bit number that all bits of an example go into.

    Each example's words are multiplied by fixed random numbers and added modulo 2^64, which is linear; so the
    sum is mixed before the examples are added. Other bits give another number but for a chance of 2^-32.
    Batches that cannot be cut into examples count as one.
    """
    tensors = [
        t.detach() for t in leaves(batch, torch.Tensor) if t.layout == torch.strided and not t.is_nested
    ]
    by_row = len({len(t) for t in tensors if t.ndim}) == 1
    total = torch.zeros(1, dtype=torch.int64)
    for tensor in tensors:
        rows = tensor.reshape(len(tensor) if by_row and tensor.ndim else 1, -1)
        total = _mixed(total) + _hashed(rows).cpu()  # mixed: which tensor a number is in counts too
    return int(_mixed(total).sum())


def _hashed(rows: torch.Tensor) -> torch.Tensor:
    """(n,) int64 of (n, w) of any dtype."""
    bytes_ = rows.resolve_conj().resolve_neg().contiguous().view(torch.uint8)
    if bytes_.shape[1] % 4:
        bytes_ = F.pad(bytes_, (0, -bytes_.shape[1] % 4))
    words = bytes_.view(torch.int32)
    factors = _factors(words.shape[1], words.device)
    result = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    step = max(1, _CHUNK // max(1, words.shape[1]))
    for start in range(0, len(words), step):
        result[start : start + step] = (words[start : start + step] * factors).sum(1)
    return result


@lru_cache(maxsize=8)
def _factors(count: int, device: torch.device) -> torch.Tensor:
    random = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count, dtype=np.int64) | 1
    return torch.from_numpy(random).to(device)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Each number's bits spread over all 64."""
    for shift in (30, 27):
        numbers = (numbers ^ (numbers >> shift)) * _ODD
    return numbers ^ (numbers >> 31)
