"""Batches whose random augmentation is the same whenever and wherever they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from thermoscope.random_state import preserved_random_state, seed_streams

__all__ = ["SeededBatches"]


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
