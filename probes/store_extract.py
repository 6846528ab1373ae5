"""The extraction: from a request to the one pass over the data that fills in what the store lacks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from .digests import Digests, input_digests, model_digest
from .errors import ProbeError
from .host import held_fixed
from .store_contents import Data, Manifest, Settings, checkpoint_folder
from .store_job import Job, Lock
from .store_processes import Processes
from .store_records import checksum
from .store_run import LayerRun, Request, StoredLayer, Tensors
from .store_source import Source
from .store_writer import Stored, Writer

__all__ = ["Estimate", "Extraction"]

_MANY = 50  # batches in which a further one goes unnoticed


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
class _First:
    """The first batch: the layers that the request means, their features and labels."""

    layers: list[StoredLayer]
    skipped: Mapping[str, str]
    features: Tensors
    labels: Tensors
    seconds: float


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
        request.selection(model).check(model)
        autocast = None if request.autocast is None else str(request.autocast).removeprefix("torch.")
        self._settings = Settings(dtype, autocast, request.seed)
        self._model, self._loader, self._store, self._request = model, loader, store, request
        self._progress, self._report = progress, report
        self._source, self._processes = Source(loader), Processes(group)
        self._id = model_digest(model)
        self._folder = checkpoint_folder(store, self._id)

    def run(self) -> tuple[Data, Manifest, tuple[str, ...], Mapping[str, str]]:
        """Do what is not done yet.

        Returns:
            The data, the checkpoint's manifest, the layers that the request means, and those left out.
        """
        data, manifest = Data.read(self._store), self._manifest()
        with held_fixed(self._model, self._loader):
            batch, inputs = self._source.first()
            if data is not None:
                self._require_same_data(data, inputs)
            answer = None if manifest is None else manifest.requests.get(self._request.text or "")
            if data is not None and manifest is not None and answer is not None:
                return data, manifest, *answer
            first = self._look_at(batch)
            have = [] if manifest is None else list(manifest.layers)
            missing = self._missing(first.layers, have)
            if missing or manifest is None:
                self._pass(self._job(data, have, missing, first, batch), first, batch, inputs)
        self._processes.first_does(lambda: self._note_request(first))
        data, manifest = Data.read(self._store), self._manifest()
        assert data is not None
        assert manifest is not None
        return data, manifest, tuple(layer.name for layer in first.layers), first.skipped

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

    def _require_same_data(self, data: Data, inputs: Digests) -> None:
        if self._source.is_counted_quickly and sum(self._source.sizes) != data.rows:
            raise ProbeError(
                f"the loader has {sum(self._source.sizes)} rows, the store {self._store} {data.rows}: it "
                "belongs to other data, so choose another folder."
            )
        self._stored(data)[0].compare(0, inputs)

    def _stored(self, data: Data) -> list[Stored]:
        what = ["inputs", *(f"labels {name}".strip() for name in data.labels)]
        columns = data.columns(self._store)
        return [Stored(c.read(), text, self._store) for c, text in zip(columns, what, strict=True)]

    def _look_at(self, batch: Any) -> _First:
        """Run the first batch whole, to see what the request means."""
        begin = time.perf_counter()
        with LayerRun(self._model, self._request) as run:
            features, labels = run(batch, 0)
            layers = run.stored_layers(features, len(next(iter(labels.values()))))
            skipped = dict(run.skipped)
        seconds = time.perf_counter() - begin
        return _First(layers, skipped, features, labels, seconds)

    def _missing(self, wanted: list[StoredLayer], have: list[StoredLayer]) -> list[StoredLayer]:
        known = {layer.name: layer for layer in have}
        for layer in wanted:
            other = known.get(layer.name, layer)
            if other != layer:
                raise ProbeError(
                    f"layer {layer.name!r} is in the store {self._store} reduced by {other.reduction!r}, and "
                    f"was asked for with {layer.reduction!r}; ask for the same, or choose another folder."
                )
        return [layer for layer in wanted if layer.name not in known]

    def _job(
        self,
        data: Data | None,
        have: list[StoredLayer],
        missing: list[StoredLayer],
        first: _First,
        batch: Any,
    ) -> Job:
        names = [layer.name for layer in missing]
        if have:  # how the old and the new ones follow one another
            names = [*(layer.name for layer in have), *names]
            with LayerRun(
                self._model, replace(self._request, layers=names, exclude=(), reduce="auto")
            ) as run:
                names = list(run(batch, 0)[0])
        return Job(
            model=self._id,
            settings=self._settings,
            layers=tuple(missing),
            order=tuple(names),
            batches=len(self._source.sizes),
            rows=int(sum(self._source.sizes)),
            sizes=checksum(self._source.sizes.tolist()),
            labels={
                n: (str(y.dtype).removeprefix("torch."), tuple(y.shape[1:])) for n, y in first.labels.items()
            },
            with_data=data is None,
        )

    def _note_request(self, first: _First) -> None:
        """So that the same request is known without running the model."""
        Job.clear_traces(self._store, self._id)
        manifest, text = Manifest.read(self._folder), self._request.text
        if manifest is not None and text is not None:
            names = tuple(layer.name for layer in first.layers)
            requests = {**manifest.requests, text: (names, first.skipped)}
            replace(manifest, requests=dict(sorted(requests.items()))).write(self._store)

    # -- the pass -----------------------------------------------------------------------------------

    def _pass(self, job: Job, first: _First, batch: Any, inputs: Digests) -> None:
        self._processes.require_same(checksum([asdict(job), inputs.tolist()]), "models, data or layers")
        lock = Lock(self._store)
        try:
            self._processes.first_does(lock.acquire)
            self._processes.first_does(lambda: job.prepare(self._store))
            job = Job.read(self._folder) or job
            todo = job.todo(self._store)
            if job.with_data and len(todo) and todo[0] > 0:
                Stored(job.columns(self._store)[0].raw(), "inputs", self._store).compare(0, inputs)
            # Nobody writes until everybody has read what is to be done.
            self._processes.require_same(checksum(todo.tolist()), "views of the store's folder")
            if len(todo):
                self._extract(job, todo, first, batch, inputs)
            self._processes.wait()
            self._processes.first_does(lambda: job.finish(self._store))
        finally:
            lock.release()

    def _extract(
        self, job: Job, todo: npt.NDArray[np.int64], first: _First, batch: Any, inputs: Digests
    ) -> None:
        processes, sizes = self._processes, self._source.sizes
        mine = todo[processes.rank :: processes.size].tolist()
        starts = np.cumsum(sizes) - sizes
        names = tuple(layer.name for layer in job.layers)
        data = None if job.with_data else Data.read(self._store)
        stored = [] if data is None else self._stored(data)
        is_mute = processes.rank > 0 or not self._progress

        request = replace(self._request, layers=names, exclude=())
        with LayerRun(self._model, request, stop_after=len(names)) as run:
            estimate = self._estimate(job, sizes[todo], first, lambda: run(batch, 0))
            if self._report is not None and processes.rank == 0:
                self._report(estimate)
            with (
                tqdm(
                    desc=f"extract {estimate.bytes / 1e9:.3g} GB",
                    total=int(sizes[mine].sum()),
                    unit="row",
                    leave=False,
                    disable=True if is_mute else None,
                ) as bar,
                Writer(job.columns(self._store), names, stored, job.progress(self._store)) as writer,
            ):
                for number, digests, features, labels in self._batches(run, mine, first, inputs):
                    rows = int(sizes[number])
                    own = [_features_of(layer, features, rows, number, job) for layer in job.layers]
                    writer.put(
                        number, int(starts[number]), [digests, *_labels_of(labels, rows, number, job)], own
                    )
                    bar.update(rows)

    def _batches(
        self, run: LayerRun, mine: list[int], first: _First, inputs: Digests
    ) -> Iterator[tuple[int, Digests, Tensors, Tensors]]:
        """Each batch's number, its inputs' digests, features and labels."""
        if mine and mine[0] == 0:
            yield 0, inputs, first.features, first.labels
            mine = mine[1:]
        for number, batch in self._source.batches(mine):
            yield number, input_digests(batch, int(self._source.sizes[number])), *run(batch, number)

    def _estimate(
        self, job: Job, sizes: npt.NDArray[np.int64], first: _First, run_again: Callable[[], Any]
    ) -> Estimate:
        seconds = first.seconds
        if len(sizes) > _MANY:  # without what only the first forward takes
            begin = time.perf_counter()
            run_again()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
        rows, row_bytes = int(sizes.sum()), sum(column.row_bytes for column in job.columns(self._store))
        return Estimate(
            rows,
            rows * row_bytes,
            shutil.disk_usage(self._store).free,
            seconds * len(sizes) / self._processes.size,
        )


def _features_of(layer: StoredLayer, features: Tensors, rows: int, number: int, job: Job) -> torch.Tensor:
    """A layer's rows as they are stored, refused if there are others than were in the first batch."""
    x = features.get(layer.name)
    if x is None:
        raise ProbeError(f"layer {layer.name!r} did not run for batch {number}; leave it out.")
    if x.shape != (rows, layer.size):
        raise ProbeError(
            f"layer {layer.name!r} gave {' x '.join(map(str, x.shape))} features for batch {number} instead "
            f"of {rows} x {layer.size}; keep the input size fixed or pool the layer (reduce='avg')."
        )
    return x.to(getattr(torch, job.settings.dtype)).contiguous()


def _labels_of(labels: Tensors, rows: int, number: int, job: Job) -> list[torch.Tensor]:
    """The label sets as they are stored, refused if they are of another kind than in the first batch."""
    if set(labels) != set(job.labels):
        raise ProbeError(
            f"batch {number} has the label sets {sorted(labels)}, the first one had {sorted(job.labels)}; "
            "give all batches the same."
        )
    for name, (dtype, shape) in job.labels.items():
        y = labels[name]
        if str(y.dtype) != f"torch.{dtype}" or y.shape != (rows, *shape):
            raise ProbeError(
                f"batch {number} has labels of shape {tuple(y.shape)} and type {y.dtype}, instead of "
                f"{(rows, *shape)} and torch.{dtype}; make all batches alike, with one label per example."
            )
    return [labels[name].contiguous() for name in job.labels]


def _described(settings: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(settings).items())
