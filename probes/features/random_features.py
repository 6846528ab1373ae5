"""Random choices and projections of features, from named streams that never change."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["random_signs", "random_subset"]


def _raw(seed: int, name: str, purpose: str, count: int) -> npt.NDArray[np.uint64]:
    """`count` uniform 64-bit words that depend on nothing but the arguments.

    Only a bit generator's raw words are promised never to change between versions of NumPy, so
    everything that must be the same tomorrow is derived from them alone.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    words: npt.NDArray[np.uint64] = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(count)
    return words


def random_subset(population: int, k: int, *, seed: int, name: str) -> torch.Tensor:
    """`k` distinct sorted indices below `population`: int64, shape (k,), by Floyd's algorithm.

    Time and memory are O(k) whatever the population. The bias of reducing 64-bit words is below
    population / 2**64.
    """
    chosen: set[int] = set()
    words = _raw(seed, name, "subset", k).tolist()
    for j, word in zip(range(population - k, population), words, strict=True):
        candidate = word % (j + 1)
        chosen.add(j if candidate in chosen else candidate)
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def random_signs(rows: int, columns: int, *, seed: int, name: str) -> torch.Tensor:
    """A float32 matrix (rows, columns) of independent, equally likely +1 and -1."""
    count = rows * columns
    words = _raw(seed, name, "signs", -(-count // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count)
    return torch.from_numpy(bits.reshape(rows, columns)).to(torch.float32).mul_(2).sub_(1)
