"""A fixed data set: batches that a loss can be averaged over again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from thermoscope.errors import HessianError, first_line
from thermoscope.random_state import preserved_random_state

from .batch import pieces, size_of, tensors_for_arrays

__all__ = ["Batches", "fixed_subset"]

_BATCH = 256  # examples at a time from a data set that comes without batches


class Batches:
    """What a user calls data, as batches that can be read again and again.

    Args:
        data: a list of batches or a `DataLoader`; a map-style `Dataset`; or all examples as one batch, a
            tuple or a dict of tensors. NumPy's arrays become tensors.

    Raises:
        HessianError: if it can be read only once, or is no data.
    """

    def __init__(self, data: Any):
        if isinstance(data, Iterator):
            raise HessianError(
                "the data is an iterator, which ends after one pass; give a list of batches, a Dataset or a "
                "DataLoader."
            )
        data = _cut(tensors_for_arrays(data))
        if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            data = DataLoader(data, batch_size=_BATCH)
        if isinstance(data, (torch.Tensor, Mapping, str, bytes)) or not isinstance(data, Iterable):
            raise HessianError(
                f"the data is a {type(data).__name__}; give a list of batches, a Dataset, a DataLoader, or "
                "all examples as tensors (x, y)."
            )
        self._source: Iterable[Any] = data
        self._preserving = False

    def __iter__(self) -> Iterator[Any]:
        empty = True
        for batch in _read(self._source):
            if size_of(batch := tensors_for_arrays(batch)) == 0:
                continue
            empty = False
            yield batch
        if empty:
            raise HessianError("the data has no batch with an example; give at least one example.")

    @contextmanager
    def preserved_streams(self) -> Iterator[None]:
        """Leave all random streams, and the loader's own, as they were before the outermost of these."""
        if self._preserving:
            yield
            return
        self._preserving = True
        try:
            with preserved_random_state(self._source):
                yield
        finally:
            self._preserving = False


def _cut(data: Any) -> Any:
    """All examples as one batch of tensors, in batches; anything else as it is."""
    parts = list(data.values()) if isinstance(data, Mapping) else data if isinstance(data, tuple) else []
    if not parts or not all(isinstance(part, torch.Tensor) and part.ndim for part in parts):
        return data
    whole = {len(part) for part in parts}
    if len(whole) != 1:
        raise HessianError(f"the tensors of the data have different lengths, {sorted(whole)}.")
    return pieces(data, _BATCH)


def _read(source: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from source
    except HessianError:
        raise
    except Exception as error:
        raise HessianError(f"a batch of the data cannot be read ({first_line(error)}).") from error


def fixed_subset(
    dataset: Dataset[Any],
    fraction: float = 0.05,
    *,
    labels: Sequence[int] | torch.Tensor | None = None,
    batch_size: int = _BATCH,
    seed: int = 0,
) -> list[Any]:
    """A random part of a map-style data set, chosen once and read once, as a list of batches.

    5% is the rule of the paper (Alain, Le Roux & Manzagol, appendix 11.D): enough for the extreme
    eigenpairs. Since examples are read once, random augmentation is frozen.

    Args:
        dataset: the whole.
        fraction: of its examples, in (0, 1]; at least one is taken.
        labels: the class of every example; each class then gets its share.
        batch_size: examples per batch.
        seed: of the choice.

    Raises:
        HessianError: for a fraction outside (0, 1], labels of another number than the examples, or a data set
            that cannot be read by index.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise HessianError(
            f"fixed_subset needs a map-style Dataset, with a length and items by index; this is a "
            f"{type(dataset).__name__}."
        )
    if batch_size < 1 or seed < 0:
        raise HessianError(f"batch_size is {batch_size} and seed {seed}; they start at 1 and at 0.")
    total = len(dataset)
    if not 0 < fraction <= 1:
        raise HessianError(f"fraction is {fraction}; it must be above 0 and at most 1.")
    if labels is not None and len(labels) != total:
        raise HessianError(f"there are {len(labels)} labels for {total} examples; give one for each.")
    if total == 0:
        raise HessianError("the data set is empty; give at least one example.")
    order = np.random.default_rng(seed).permutation(total)
    chosen = np.sort(
        _first_of_each(order, np.asarray(labels), fraction)
        if labels is not None
        else (order[: max(1, round(fraction * total))])
    )
    subset: Subset[Any] = Subset(dataset, chosen.tolist())
    starts = range(0, len(subset), batch_size)
    rows = ([subset[i] for i in range(k, min(k + batch_size, len(subset)))] for k in starts)
    return list(_read(default_collate(part) for part in rows))


def _first_of_each(order: Any, labels: Any, fraction: float) -> Any:
    by_class: dict[int, list[int]] = defaultdict(list)
    for i in order:
        by_class[int(labels[i])].append(int(i))
    return np.concatenate(
        [members[: max(1, round(fraction * len(members)))] for members in by_class.values()]
    )
