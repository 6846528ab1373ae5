"""The source of a feature store: the numbered batches of a loader, the same in every pass."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from thermoscope.batches import label_key
from thermoscope.errors import ProbeError
from thermoscope.nests import leaves

from ..digests import Digests, input_digests
from .holdings import holdings_digest

__all__ = ["NumberedBatch", "Source"]

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class NumberedBatch:
    """A batch by its number, the number of its first row, what the loader gave, and its rows' digests."""

    number: int
    start: int
    given: Any
    inputs: Digests

    @property
    def rows(self) -> int:
        """Examples."""
        return len(self.inputs)


class Source:
    """Batches by number.

    A `DataLoader` over a data set with a length loads only the batches that are asked for. Anything else that
    can be iterated again and again is gone through from its beginning, and once more at first to count.

    Attributes:
        loading: seconds that the first batch took to load.

    Raises:
        ProbeError: for a loader that shuffles, or gives each process its own part.
    """

    def __init__(self, loader: Iterable[Any]):
        sampler = getattr(loader, "sampler", None)
        inner = getattr(getattr(loader, "batch_sampler", None), "sampler", sampler)
        for candidate in (sampler, inner):
            if isinstance(candidate, _SHUFFLING):
                raise ProbeError(
                    "the loader shuffles, and a feature store needs the same rows in the same order in every "
                    "pass; pass a DataLoader with shuffle=False."
                )
            if isinstance(candidate, DistributedSampler):
                raise ProbeError(
                    "the loader has a DistributedSampler, but the processes divide the batches among "
                    "themselves; pass every process the same loader over all the data, without a sampler."
                )
        if isinstance(loader, Iterator):
            raise ProbeError(
                "the loader can be gone through only once; pass one that can be iterated again and again, "
                "such as a list or a DataLoader."
            )
        self._loader, self.loading = loader, 0.0
        self._sliced = _sliceable(loader)

    @property
    def is_counted_quickly(self) -> bool:
        """Whether the sizes are known without loading the data."""
        return self._sliced is not None or "sizes" in vars(self)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Rows of each batch."""
        if self._sliced is not None:
            counts = [len(indices) for indices in self._indices]
        else:
            counts = [rows_of(batch) for batch in self._loader]
        return np.array(counts, dtype=np.int64)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Number of the first row of each batch."""
        starts: npt.NDArray[np.int64] = np.cumsum(self.sizes) - self.sizes
        return starts

    @cached_property
    def holdings(self) -> str:
        """A digest of what the data set holds and in which order; empty where only the batches can tell."""
        if self._sliced is None:
            return ""
        order = [index for indices in self._indices for index in indices]
        return holdings_digest(self._sliced.dataset, order, self._sliced.collate_fn)

    @cached_property
    def _indices(self) -> list[Sequence[Any]]:
        assert self._sliced is not None
        assert self._sliced.batch_sampler is not None
        return list(self._sliced.batch_sampler)

    @property
    def workers(self) -> int:
        """Processes that load batches."""
        return int(getattr(self._loader, "num_workers", 0))

    def first(self) -> NumberedBatch:
        """The first batch.

        Raises:
            ProbeError: if there is none, or it is another one the second time.
        """
        once, again = self._open(), self._open()
        if not np.array_equal(once.inputs, again.inputs):
            raise ProbeError(
                "the loader gives other values on a second pass; switch off its shuffling and augmentation."
            )
        return again

    def _open(self) -> NumberedBatch:
        begin = time.perf_counter()
        _, batch = next(self._iterate([0]), (0, None))
        if batch is None:
            raise ProbeError("the loader gave no batch, so there are no features to extract.")
        self.loading = time.perf_counter() - begin
        rows = rows_of(batch) if self._sliced is None else int(self.sizes[0])
        return NumberedBatch(0, 0, batch, input_digests(batch, rows))

    def batches(self, wanted: Sequence[int]) -> Iterator[NumberedBatch]:
        """The batches with these ascending numbers.

        Raises:
            ProbeError: if there are fewer than there were.
        """
        count = 0
        for number, batch in self._iterate(wanted):
            count += 1
            inputs = input_digests(batch, int(self.sizes[number]))
            yield NumberedBatch(number, int(self.starts[number]), batch, inputs)
        if count < len(wanted):
            raise ProbeError(
                f"the loader ended before batch {wanted[count]} of {len(self.sizes)}; pass one that gives "
                "the same batches in every pass."
            )

    def _iterate(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        if self._sliced is not None:
            yield from zip(wanted, _slice(self._sliced, wanted), strict=False)
            return
        remaining = iter(wanted)
        target = next(remaining, None)
        for number, batch in enumerate(self._loader):
            if target is None:
                return
            if number == target:
                yield number, batch
                target = next(remaining, None)


def rows_of(batch: Any) -> int:
    """Examples in a batch: of its labels if it has some in the usual place, else of its first tensor.

    Raises:
        ProbeError: if it has neither.
    """
    key = label_key(batch)
    if key is not None and hasattr(batch[key], "__len__") and np.ndim(batch[key]):
        return len(batch[key])
    for tensor in leaves(batch, torch.Tensor):
        if tensor.ndim:
            return len(tensor)
    raise ProbeError(
        "a batch has no tensors and no labels that say how many examples it has; give a DataLoader without "
        "shuffling, which knows, or batches (inputs, labels)."
    )


def _sliceable(loader: Iterable[Any]) -> DataLoader[Any] | None:
    """The loader, if another one over some of its batches gives what it gives."""
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    return loader if loader.batch_sampler is not None else None


def _slice(loader: DataLoader[Any], wanted: Sequence[int]) -> DataLoader[Any]:
    workers, numbers = min(loader.num_workers, len(wanted)), set(wanted)
    options: dict[str, Any] = {}
    if workers:
        options = {
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
        }
    assert loader.batch_sampler is not None
    return DataLoader(
        loader.dataset,
        batch_sampler=[indices for i, indices in enumerate(loader.batch_sampler) if i in numbers],
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
        **options,
    )
