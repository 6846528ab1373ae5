"""One pass over the data: batches become rows of a store."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from thermoscope.errors import ProbeError

from ..digests import Digests, input_digests
from ..features.layout import Layout
from .contents import Data
from .job import Job
from .layer_run import LayerRun, StoredLayer, Tensors
from .source import Opening, Source
from .writer import Stored, Writer

__all__ = ["Estimate", "First", "Pass", "features_of", "kinds_of", "labels_of", "stored_data"]

LabelKinds: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]  # by name of the set: dtype, shape of a row

_MANY = 50  # batches beside which a further one does not count


@dataclass(frozen=True)
class Estimate:
    """What an extraction is about to do.

    Attributes:
        rows: rows that are still to be extracted, by all processes.
        bytes: bytes that will be written.
        free: bytes free on the disk.
        seconds: how long it will take, by the first batch.
    """

    rows: int
    bytes: int
    free: int
    seconds: float


@dataclass(frozen=True)
class First:
    """The first batch, run whole: which layers the request means and which are left out, features and labels,
    the seconds that it took, and the layers' layouts.
    """

    opening: Opening
    layers: list[StoredLayer]
    skipped: Mapping[str, str]
    features: Tensors
    labels: Tensors
    seconds: float
    layouts: dict[str, Layout]


class Pass:
    """What a job still needs.

    Args:
        job: prepared.
        store: the folder.
        source: the batches.
        run: gives the features of the job's layers.
        first: the first batch, which is not run again.
    """

    def __init__(self, job: Job, store: Path, source: Source, run: LayerRun, first: First):
        self._job, self._store, self._source, self._run, self._first = job, store, source, run, first
        self._columns = job.columns(store)

    def estimate(self, todo: npt.NDArray[np.int64], processes: int) -> Estimate:
        """What extracting these batches comes to."""
        seconds, opening = self._first.seconds, self._first.opening
        if len(todo) > _MANY:  # without what only a first forward takes
            begin = time.perf_counter()
            self._run(opening.batch, 0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        workers = self._source.workers
        seconds = max(seconds, opening.seconds / workers) if workers else seconds + opening.seconds
        rows = int(self._source.sizes[todo].sum())
        return Estimate(
            rows,
            rows * sum(column.row_bytes for column in self._columns),
            shutil.disk_usage(self._store).free,
            seconds * len(todo) / processes,
        )

    def run(self, mine: npt.NDArray[np.int64], estimate: Estimate, is_mute: bool) -> None:
        """Extract the batches with these numbers.

        Raises:
            ProbeError: for rows that cannot be stored or that are not those of the store, and a full disk.
        """
        job, sizes, starts = self._job, self._source.sizes, self._source.starts
        names = [layer.name for layer in job.layers]
        with (
            tqdm(
                desc=f"extract {estimate.bytes / 1e9:.3g} GB",
                total=int(sizes[mine].sum()),
                unit="row",
                leave=False,
                disable=True if is_mute else None,
            ) as bar,
            Writer(self._columns, names, self._stored(), job.progress(self._store)) as writer,
        ):
            for number, inputs, features, labels in self._batches(mine.tolist()):
                rows = int(sizes[number])
                writer.put(
                    number,
                    int(starts[number]),
                    [inputs, *labels_of(labels, rows, number, job.labels)],
                    [features_of(layer, features, rows, number, job.settings.dtype) for layer in job.layers],
                )
                bar.update(rows)

    def _stored(self) -> list[Stored]:
        """The data's columns, if they are there already."""
        data = None if self._job.with_data else Data.read(self._store)
        return [] if data is None else stored_data(data, self._store)

    def _batches(self, mine: list[int]) -> Iterator[tuple[int, Digests, Tensors, Tensors]]:
        """Each batch's number, its inputs' digests, features and labels."""
        if mine and mine[0] == 0:
            yield 0, self._first.opening.inputs, self._first.features, self._first.labels
            mine = mine[1:]
        for number, batch in self._source.batches(mine):
            yield number, input_digests(batch, int(self._source.sizes[number])), *self._run(batch, number)


def stored_data(data: Data, store: Path) -> list[Stored]:
    """The columns of the inputs and the labels, to compare others with."""
    what = ["inputs", *(f"labels {name}".strip() for name in data.labels)]
    return [Stored(c.read(), text, store) for c, text in zip(data.columns(store), what, strict=True)]


def features_of(layer: StoredLayer, features: Tensors, rows: int, number: int, dtype: str) -> torch.Tensor:
    """A layer's rows as they are stored, refused if there are others than were in the first batch."""
    x = features.get(layer.name)
    if x is None:
        raise ProbeError(f"layer {layer.name!r} did not run for batch {number}; leave it out.")
    if x.shape != (rows, layer.size):
        raise ProbeError(
            f"layer {layer.name!r} gave {' x '.join(map(str, x.shape))} features for batch {number} instead "
            f"of {rows} x {layer.size}; keep the input size fixed or pool the layer (reduce='avg')."
        )
    return x.to(getattr(torch, dtype)).contiguous()


def kinds_of(labels: Tensors) -> LabelKinds:
    """Dtype and shape of a row, by name of the label set."""
    return {name: (str(y.dtype).removeprefix("torch."), tuple(y.shape[1:])) for name, y in labels.items()}


def labels_of(labels: Tensors, rows: int, number: int, kinds: LabelKinds) -> list[torch.Tensor]:
    """The label sets as they are stored, refused if they are of another kind than in the first batch."""
    if set(labels) != set(kinds):
        raise ProbeError(
            f"batch {number} has the label sets {sorted(labels)}, the first one had {sorted(kinds)}; "
            "give all batches the same."
        )
    for name, (dtype, shape) in kinds.items():
        y = labels[name]
        if str(y.dtype) != f"torch.{dtype}" or y.shape != (rows, *shape):
            raise ProbeError(
                f"batch {number} has labels of shape {tuple(y.shape)} and type {y.dtype}, instead of "
                f"{(rows, *shape)} and torch.{dtype}; make all batches alike, with one label per example."
            )
    return [labels[name].contiguous() for name in kinds]
