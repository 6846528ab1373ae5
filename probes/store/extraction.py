"""The extraction: from a request to the one pass over the data that fills in what the store lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from thermoscope.errors import ProbeError

from ..digests import model_digest
from ..features.layer_reader import LayerReader
from ..features.reduction import parse_reduction
from ..user_model import held_fixed
from .contents import Data, Manifest, Settings, checkpoint_folder, layer_column
from .estimate import Estimate
from .job import Job, Lock
from .processes import Processes
from .recognition import require_same_features, tolerance_of
from .records import checksum
from .rows import Request, Rows, StoredLayer, layers_to_store
from .source import NumberedBatch, Source
from .writer import Stored, Writer

__all__ = ["Extraction"]

_MANY = 50  # batches beside which a further one does not count


class Extraction:
    """One call of `FeatureStore.extract`, whose arguments these are."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        store: Path,
        request: Request,
        dtype: str,
        progress: bool,
        report: Callable[[Estimate], None] | None,
        group: dist.ProcessGroup | None,
    ):
        autocast = None if request.autocast is None else str(request.autocast).removeprefix("torch.")
        self._settings = Settings(dtype, autocast, request.seed)
        self._model, self._loader, self._store, self._request = model, loader, store, request
        self._report = report
        self._source, self._processes = Source(loader), Processes(group)
        self._is_mute = self._processes.rank > 0 or not progress
        self._id = model_digest(model)
        self._folder = checkpoint_folder(store, self._id)

    def run(self) -> tuple[Data, Manifest, tuple[str, ...], Mapping[str, str]]:
        """Do what is not done yet.

        Returns:
            The data, the checkpoint's manifest, the layers that the request means, and those left out.
        """
        data, manifest = Data.read(self._store), self._manifest()
        have = () if manifest is None else manifest.layers
        self._processes.wait()  # nobody writes until everybody has read
        with held_fixed(self._model, self._loader), self._reading(have) as reader:
            batch = self._source.first()
            if data is not None:
                if self._source.is_counted_quickly:
                    self._require_rows(data)
                self._stored_inputs(data).compare(0, batch.inputs)
            begin = time.perf_counter()
            first = self._rows(reader, batch)
            seconds = time.perf_counter() - begin
            asked = layers_to_store(reader, first)
            missing = self._missing(asked, have)
            if data is not None and have:
                self._compare(data, have, first, reader)
                if not missing:
                    self._look_again(data, have, reader)
            if missing:
                self._pass(self._job(data, missing, have, first), reader, first, seconds)
        self._processes.first_does(lambda: Job.clear_traces(self._store, self._id))
        data, manifest = Data.read(self._store), self._manifest()
        assert data is not None
        assert manifest is not None
        return data, manifest, tuple(layer.name for layer in asked), dict(reader.skipped)

    @contextmanager
    def _reading(self, have: Sequence[StoredLayer]) -> Iterator[LayerReader]:
        """What reads the layers that are asked for, and those that the store has as they were read for it.

        How those were reduced is not known if it was by a user's own reduction: they only run.
        """
        reductions = {x.name: x.reduction if _is_reduction(x.reduction) else "flatten" for x in have}
        reader = self._request.reader(self._model, reductions)
        try:
            with reader.reading_everything():
                yield reader
        finally:
            reader.detach()

    def _rows(self, reader: LayerReader, batch: NumberedBatch) -> Rows:
        return self._request.rows(reader, self._model, batch)

    # -- what there is, and what is to be done -------------------------------------------------------

    def _manifest(self) -> Manifest | None:
        manifest = Manifest.read(self._folder)
        if manifest is not None:
            manifest.require_data(self._store)
        if manifest is not None and manifest.settings != self._settings:
            raise ProbeError(
                f"the store {self._store} holds this checkpoint with {_described(manifest.settings)}, and "
                f"was asked for {_described(self._settings)}; ask for the same, or choose another folder."
            )
        return manifest

    def _require_rows(self, data: Data) -> None:
        rows = int(self._source.sizes.sum())
        if rows != data.rows:
            raise ProbeError(
                f"the loader has {rows} rows, the store {self._store} {data.rows}: it belongs to other data, "
                "so choose another folder."
            )

    def _stored_inputs(self, data: Data) -> Stored:
        return data.stored(self._store)[0]

    def _missing(self, wanted: Sequence[StoredLayer], have: Sequence[StoredLayer]) -> list[StoredLayer]:
        known = {layer.name: layer for layer in have}
        for layer in wanted:
            other = known.get(layer.name, layer)
            if other != layer:
                raise ProbeError(
                    f"layer {layer.name!r} is in the store {self._store} reduced by {other.reduction!r}, and "
                    f"was asked for with {layer.reduction!r}; ask for the same, or choose another folder."
                )
        return [layer for layer in wanted if layer.name not in known]

    def _look_again(self, data: Data, have: Sequence[StoredLayer], reader: LayerReader) -> None:
        """Look further than at the first batch, where nothing is missing and no pass compares all rows.

        Two more batches are compared with what is stored, and all inputs unless the data set holds the same.

        Raises:
            ProbeError: naming what differs.
        """
        self._require_rows(data)
        count = len(self._source.sizes)
        if not self._source.holdings or self._source.holdings != data.holdings:
            self._compare_inputs(self._stored_inputs(data), range(count))
        for batch in self._source.batches(sorted({count // 2, count - 1} - {0})):
            self._compare(data, have, self._rows(reader, batch), reader)

    def _compare_inputs(self, stored: Stored, numbers: Sequence[int]) -> None:
        for batch in self._source.batches(numbers):
            stored.compare(batch.start, batch.inputs)

    def _compare(self, data: Data, have: Sequence[StoredLayer], rows: Rows, reader: LayerReader) -> None:
        """Refuse a batch that is not as it is stored."""
        for layer in have:
            bound = reader.bound.get(layer.name)
            if bound is None or bound.text == layer.reduction:
                column = layer_column(self._folder, layer, self._settings, data.rows)
                self._require_features(layer, column.read(), rows)
        self._require_labels(data, rows)
        blocks = [rows.batch.inputs, *(y.cpu().numpy() for y in rows.labels_of(data.labels))]
        for stored, block in zip(data.stored(self._store), blocks, strict=True):
            stored.compare(rows.batch.start, block)

    def _require_features(self, layer: StoredLayer, stored: npt.NDArray[Any], rows: Rows) -> None:
        """Refuse a batch whose features of a layer are others than those in the layer's array."""
        start = rows.batch.start
        found = rows.of(layer, self._settings.dtype).cpu().numpy()
        tolerance = tolerance_of(self._model, self._request.autocast)
        own = stored[start : start + len(found)]
        require_same_features(layer.name, start, own, found, tolerance, self._store)

    def _require_labels(self, data: Data, rows: Rows) -> None:
        found = rows.kinds
        if found != data.labels:
            raise ProbeError(
                f"the labels are {found}, in the store {self._store} {dict(data.labels)}: it belongs to "
                "other data, so choose another folder."
            )

    def _job(
        self, data: Data | None, missing: Sequence[StoredLayer], have: Sequence[StoredLayer], first: Rows
    ) -> Job:
        if data is not None:
            self._require_rows(data)
            self._require_labels(data, first)
        sizes, names = self._source.sizes, {layer.name for layer in (*missing, *have)}
        return Job(
            model=self._id,
            settings=self._settings,
            layers=tuple(missing),
            order=tuple(name for name in first.features if name in names),
            batches=len(sizes),
            rows=int(sizes.sum()),
            sizes=checksum(sizes.tolist()),
            labels=first.kinds,
            holdings=self._source.holdings,
            with_data=data is None,
        )

    # -- the pass -----------------------------------------------------------------------------------

    def _pass(self, job: Job, reader: LayerReader, first: Rows, seconds: float) -> None:
        """Do what a job still needs, of which the first batch took so long to compute."""
        own = asdict(replace(job, holdings=""))  # which may name a process's own folder
        inputs = first.batch.inputs.tolist()
        self._processes.require_same(checksum([own, inputs]), "models, data or layers")
        lock = Lock(self._store)
        try:
            self._processes.first_does(lock.acquire)
            self._processes.first_does(lambda: job.prepare(self._store))
            job = Job.read(self._folder) or job
            todo = job.todo(self._store)
            self._require_same_job(job, todo, first)
            self._processes.require_same(checksum(todo.tolist()), "views of the store's folder")
            if len(todo):
                reader.narrow([layer.name for layer in job.layers])
                self._extract(job, todo, reader, first, seconds)
            self._processes.wait()
            self._processes.first_does(lambda: job.finish(self._store))
        finally:
            lock.release()

    def _require_same_job(self, job: Job, todo: npt.NDArray[np.int64], first: Rows) -> None:
        """Refuse to go on with what was begun with other data or another model, by what is done of it."""
        done = np.setdiff1d(np.arange(job.batches), todo).tolist()
        if not done:
            return
        stored = Stored(job.data.columns(self._store)[0].raw(), "inputs", self._store)
        if 0 in done:
            stored.compare(0, first.batch.inputs)
            for layer in job.layers:
                column = layer_column(self._folder, layer, self._settings, job.rows)
                self._require_features(layer, column.raw(), first)
        if not job.holdings or job.holdings != self._source.holdings:
            self._compare_inputs(stored, done)

    def _extract(
        self, job: Job, todo: npt.NDArray[np.int64], reader: LayerReader, first: Rows, seconds: float
    ) -> None:
        """Extract this process's share of the batches with these numbers.

        Raises:
            ProbeError: for rows that cannot be stored or that are not those of the store, and a full disk.
        """
        rank, size = self._processes.rank, self._processes.size
        if len(todo) > _MANY:  # without what only a first forward takes
            begin = time.perf_counter()
            self._rows(reader, first.batch)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        columns, mine = job.columns(self._store), todo[rank::size]
        estimate = Estimate.of(columns, self._source, todo, seconds, size, self._store)
        if self._report is not None and rank == 0:
            self._report(estimate)
        data = None if job.with_data else Data.read(self._store)
        stored = [] if data is None else data.stored(self._store)
        names = [layer.name for layer in job.layers]
        with (
            tqdm(
                desc=f"extract {estimate.bytes / 1e9:.3g} GB",
                total=int(self._source.sizes[mine].sum()),
                unit="row",
                leave=False,
                disable=True if self._is_mute else None,
            ) as bar,
            Writer(columns, names, stored, job.progress(self._store)) as writer,
        ):
            for rows in self._all_rows(mine.tolist(), reader, first):
                features = [rows.of(layer, job.settings.dtype) for layer in job.layers]
                batch, labels = rows.batch, rows.labels_of(job.labels)
                writer.put(batch.number, batch.start, [batch.inputs, *labels], features)
                bar.update(batch.rows)

    def _all_rows(self, numbers: list[int], reader: LayerReader, first: Rows) -> Iterator[Rows]:
        """The rows of each batch; the first one's are there already."""
        if 0 in numbers:
            yield first
        for batch in self._source.batches([number for number in numbers if number]):
            yield self._rows(reader, batch)


def _is_reduction(text: str) -> bool:
    try:
        parse_reduction(text)
    except ProbeError:  # a user's own
        return False
    return True


def _described(settings: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(settings).items())
