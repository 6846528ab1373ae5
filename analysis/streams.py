"""Python's, NumPy's and torch's global random streams: seeded, saved and put back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from probes import preserved_random_state

__all__ = ["SeededBatches", "random_state", "restore_random_state", "seed_streams"]


def seed_streams(*key: object) -> None:
    """Seed all three from a key; the same key gives the same numbers. A single number is taken as it is."""
    if len(key) == 1 and isinstance(key[0], int):
        seed = key[0]
    else:
        seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeededBatches(Dataset[Any]):
    """A data set whose random augmentation depends on the batch alone.

    Each batch draws from streams that are seeded by a key and its indices, and the caller's streams stay as
    they are: the same batch comes out whichever process loads it, whatever was loaded before, and after a
    run has been killed and resumed.
    """

    def __init__(self, split: Any, *key: object):
        self._split, self._key = split, key

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i: int) -> Any:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The examples of a batch, as `DataLoader` asks for them."""
        with preserved_random_state():
            seed_streams(*self._key, *indices)
            if hasattr(self._split, "__getitems__"):
                return list(self._split.__getitems__(indices))
            return [self._split[i] for i in indices]


def random_state() -> dict[str, Any]:
    """The state of the three streams, as tensors, numbers and strings."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert name == "MT19937"
    return {
        "python": (version, list(words), gauss),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the streams back to where `random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
