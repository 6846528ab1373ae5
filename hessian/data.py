"""A fixed data set: batches that a loss can be averaged over again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from .errors import HessianError

__all__ = ["Batches", "examples_in", "fixed_subset", "leaves", "mapped", "moved", "pieces"]

_BATCH = 256  # examples at a time from a data set that comes without batches


class Batches:
    """What a user calls data, as batches that can be read again and again.

    Args:
        data: a list of batches or a `DataLoader`; a map-style `Dataset`; or one batch, as a tuple of tensors.

    Raises:
        HessianError: if it can be read only once.
    """

    def __init__(self, data: Any):
        if isinstance(data, Iterator):
            raise HessianError(
                "the data is an iterator, which ends after one pass; give a list of batches, a Dataset or a "
                "DataLoader."
            )
        if isinstance(data, tuple) and all(isinstance(part, torch.Tensor) for part in data):
            whole = {len(part) for part in data}
            if len(whole) != 1:
                raise HessianError(f"the tensors of the data have different lengths, {sorted(whole)}.")
            data = [tuple(parts) for parts in zip(*(part.split(_BATCH) for part in data), strict=True)]
        elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            data = DataLoader(data, batch_size=_BATCH)
        self._source: Iterable[Any] = data
        self._preserving = False

    def __iter__(self) -> Iterator[Any]:
        empty = True
        for batch in self._source:
            empty = False
            yield batch
        if empty:
            raise HessianError("the data has no batch; give at least one example.")

    @contextmanager
    def preserved_streams(self) -> Iterator[None]:
        """Leave torch's random streams and the loader's own as they were before the outermost of these.

        Merely starting to iterate a `DataLoader` draws from its generator, or from torch's global stream.
        """
        if self._preserving:
            yield
            return
        generator = getattr(self._source, "generator", None)
        state = generator.get_state() if isinstance(generator, torch.Generator) else None
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        self._preserving = True
        with torch.random.fork_rng(devices=devices):
            try:
                yield
            finally:
                self._preserving = False
                if isinstance(generator, torch.Generator) and state is not None:
                    generator.set_state(state)


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
        HessianError: for a fraction outside (0, 1], or labels of another number than the examples.
    """
    total = len(dataset)  # type: ignore[arg-type]
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
    return [
        default_collate([subset[i] for i in range(start, min(start + batch_size, len(subset)))])
        for start in range(0, len(subset), batch_size)
    ]


def _first_of_each(order: Any, labels: Any, fraction: float) -> Any:
    by_class: dict[int, list[int]] = defaultdict(list)
    for i in order:
        by_class[int(labels[i])].append(int(i))
    return np.concatenate(
        [members[: max(1, round(fraction * len(members)))] for members in by_class.values()]
    )


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
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def examples_in(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor.

    Raises:
        HessianError: if it has no tensor with a leading dimension.
    """
    for leaf in leaves(batch):
        if leaf.ndim:
            return len(leaf)
    raise HessianError("a batch has no tensor whose length would tell its number of examples; pass `count=`.")


def pieces(batch: Any, size: int) -> list[Any]:
    """The batch in parts of at most `size` examples; whole if its tensors have no common length."""
    length = examples_in(batch)
    if size >= length or any(leaf.ndim == 0 or len(leaf) != length for leaf in leaves(batch)):
        return [batch]

    def piece(start: int) -> Any:
        return mapped(batch, lambda tensor: tensor[start : start + size])

    return [piece(start) for start in range(0, length, size)]


def moved(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The batch on the device; floating-point tensors in `dtype`, if one is given."""

    def move(t: torch.Tensor) -> torch.Tensor:
        return t.to(device, dtype if dtype is not None and t.is_floating_point() else None)

    return mapped(batch, move)
