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

__all__ = ["Opening", "Source"]

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class Opening:
    """The first batch, the digests of its rows, and how long it took to load."""

    batch: Any
    inputs: Digests
    seconds: float


class Source:
    """Batches by number.

    A `DataLoader` over a data set with a length loads only the batches that are asked for. Anything else that
    can be iterated again and again is gone through from its beginning, and once more at first to count.

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
        self._loader = loader
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

    def inputs(self, wanted: Sequence[int]) -> Iterator[tuple[int, Digests]]:
        """First row and digests of the rows, of the batches with these ascending numbers."""
        for number, batch in self.batches(wanted):
            yield int(self.starts[number]), input_digests(batch, int(self.sizes[number]))

    @property
    def workers(self) -> int:
        """Processes that load batches."""
        return int(getattr(self._loader, "num_workers", 0))

    def first(self) -> Opening:
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

    def _open(self) -> Opening:
        begin = time.perf_counter()
        _, batch = next(self._iterate([0]), (0, None))
        if batch is None:
            raise ProbeError("the loader gave no batch, so there are no features to extract.")
        seconds = time.perf_counter() - begin
        rows = rows_of(batch) if self._sliced is None else int(self.sizes[0])
        return Opening(batch, input_digests(batch, rows), seconds)

    def batches(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """The batches with these ascending numbers.

        Raises:
            ProbeError: if there are fewer than there were.
        """
        given = 0
        for number, batch in self._iterate(wanted):
            given += 1
            yield number, batch
        if given < len(wanted):
            raise ProbeError(
                f"the loader ended before batch {wanted[given]} of {len(self.sizes)}; pass one that gives "
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


class _SomeBatches:
    """The index lists of some batches."""

    def __init__(self, batches: Iterable[Sequence[Any]], wanted: Sequence[int]):
        self._batches, self._wanted = batches, wanted

    def __iter__(self) -> Iterator[Sequence[Any]]:
        remaining = iter(self._wanted)
        target = next(remaining, None)
        for number, indices in enumerate(self._batches):
            if target is None:
                return
            if number == target:
                yield indices
                target = next(remaining, None)


def _slice(loader: DataLoader[Any], wanted: Sequence[int]) -> DataLoader[Any]:
    workers = min(loader.num_workers, len(wanted))
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
        batch_sampler=_SomeBatches(loader.batch_sampler, wanted),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
        **options,
    )
