"""The extraction: from a request to the one pass over the data that fills in what the store lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch import nn

from thermoscope.errors import ProbeError

from ..digests import Digests, input_digests, model_digest
from ..features.reduction import parse_reduction
from ..user_model import held_fixed
from .contents import Data, Manifest, Settings, checkpoint_folder, layer_column
from .job import Job, Lock
from .layer_run import LayerRun, Request, StoredLayer, Tensors
from .one_pass import Estimate, First, Pass, features_of, kinds_of, labels_of, stored_data
from .processes import Processes
from .recognition import require_same_features, tolerance_of
from .records import checksum
from .source import Opening, Source
from .writer import Stored

__all__ = ["Extraction"]


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
        self._processes.wait()  # nobody writes until everybody has read
        with held_fixed(self._model, self._loader):
            opening = self._source.first()
            if data is not None:
                if self._source.is_counted_quickly:
                    self._require_rows(data)
                self._stored_inputs(data).compare(0, opening.inputs)
            first = self._look_at(opening)
            have = [] if manifest is None else list(manifest.layers)
            missing = self._missing(first.layers, have)
            order = [layer.name for layer in missing]
            if data is not None and have:
                order = self._recognise(data, have, missing, first)
            if missing:
                self._pass(self._job(data, order, missing, first), first)
        self._processes.first_does(lambda: Job.clear_traces(self._store, self._id))
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

    def _require_rows(self, data: Data) -> None:
        rows = int(self._source.sizes.sum())
        if rows != data.rows:
            raise ProbeError(
                f"the loader has {rows} rows, the store {self._store} {data.rows}: it belongs to other data, "
                "so choose another folder."
            )

    def _stored_inputs(self, data: Data) -> Stored:
        return Stored(data.columns(self._store)[0].read(), "inputs", self._store)

    def _look_at(self, opening: Opening) -> First:
        """Run the first batch whole, to see what the request means."""
        begin = time.perf_counter()
        with LayerRun(self._model, self._request) as run:
            features, labels = run(opening.batch, 0)
            layers = run.stored_layers(features, len(next(iter(labels.values()))))
            skipped = dict(run.skipped)
            layouts = run.layouts
        return First(opening, layers, skipped, features, labels, time.perf_counter() - begin, layouts)

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

    def _recognise(
        self, data: Data, have: list[StoredLayer], missing: list[StoredLayer], first: First
    ) -> list[str]:
        """Look whether model and data are still those of the layers that the store has.

        The first batch is compared with what is stored. Where nothing is missing, so that no pass compares
        the inputs of all rows, two more batches are, and all inputs unless the data set holds the same.

        Returns:
            The names of all layers in execution order.

        Raises:
            ProbeError: naming what differs.
        """
        numbers: list[int] = []
        if not missing:
            self._require_rows(data)
            count = len(self._source.sizes)
            numbers = sorted({count // 2, count - 1} - {0})
            if not self._source.holdings or self._source.holdings != data.holdings:
                for row, inputs in self._source.inputs(range(count)):
                    self._stored_inputs(data).compare(row, inputs)
        with LayerRun(self._model, self._of_all(have, missing, first)) as run:
            features, labels = run(first.opening.batch, 0)
            order = list(features)
            self._compare(data, have, 0, first.opening.inputs, features, labels, run)
            for number, batch in self._source.batches(numbers):
                inputs = input_digests(batch, int(self._source.sizes[number]))
                self._compare(data, have, number, inputs, *run(batch, number), run)
        return order

    def _of_all(self, have: list[StoredLayer], missing: list[StoredLayer], first: First) -> Request:
        """The request of all layers: those that are asked for as they are, the others as they were.

        How others were reduced is not known if it was by a user's own reduction: they only run.
        """
        own, asked = self._request.reduce, {layer.name for layer in first.layers}
        stored = {layer.name: layer.reduction for layer in have if _is_reduction(layer.reduction)}
        stored = {**{layer.name: "flatten" for layer in have if layer.name not in asked}, **stored}
        names = (*(layer.name for layer in have), *(layer.name for layer in missing))
        reduce = {**stored, **(own if isinstance(own, Mapping) else {"**": own})}
        return replace(self._request, layers=names, exclude=(), reduce=reduce)

    def _compare(
        self,
        data: Data,
        have: list[StoredLayer],
        number: int,
        inputs: Digests,
        features: Tensors,
        labels: Tensors,
        run: LayerRun,
    ) -> None:
        """Refuse a batch that is not as it is stored."""
        row, rows = int(self._source.starts[number]), int(self._source.sizes[number])
        for layer in have:
            if run.reduction(layer.name) == layer.reduction:
                column = layer_column(self._folder, layer, self._settings, data.rows)
                self._require_features(layer, column.read(), row, features, number)
        self._require_labels(data, labels)
        blocks = [inputs, *(y.cpu().numpy() for y in labels_of(labels, rows, number, data.labels))]
        for stored, block in zip(stored_data(data, self._store), blocks, strict=True):
            stored.compare(row, block)

    def _require_features(
        self, layer: StoredLayer, stored: npt.NDArray[Any], row: int, features: Tensors, number: int
    ) -> None:
        """Refuse a batch whose features of a layer are others than those stored from row `row` on."""
        rows = int(self._source.sizes[number])
        found = features_of(layer, features, rows, number, self._settings.dtype).cpu().numpy()
        tolerance = tolerance_of(self._model, self._request.autocast)
        require_same_features(layer.name, row, stored[row : row + rows], found, tolerance, self._store)

    def _require_labels(self, data: Data, labels: Tensors) -> None:
        found = kinds_of(labels)
        if found != data.labels:
            raise ProbeError(
                f"the labels are {found}, in the store {self._store} {dict(data.labels)}: it belongs to "
                "other data, so choose another folder."
            )

    def _job(self, data: Data | None, order: list[str], missing: list[StoredLayer], first: First) -> Job:
        if data is not None:
            self._require_rows(data)
            self._require_labels(data, first.labels)
        sizes = self._source.sizes
        return Job(
            model=self._id,
            settings=self._settings,
            layers=tuple(missing),
            order=tuple(order),
            batches=len(sizes),
            rows=int(sizes.sum()),
            sizes=checksum(sizes.tolist()),
            labels=kinds_of(first.labels),
            holdings=self._source.holdings,
            with_data=data is None,
        )

    # -- the pass -----------------------------------------------------------------------------------

    def _pass(self, job: Job, first: First) -> None:
        inputs = first.opening.inputs
        own = asdict(replace(job, holdings=""))  # which may name a process's own folder
        self._processes.require_same(checksum([own, inputs.tolist()]), "models, data or layers")
        lock = Lock(self._store)
        try:
            self._processes.first_does(lock.acquire)
            self._processes.first_does(lambda: job.prepare(self._store))
            job = Job.read(self._folder) or job
            todo = job.todo(self._store)
            self._require_same_job(job, todo, first)
            self._processes.require_same(checksum(todo.tolist()), "views of the store's folder")
            if len(todo):
                options = replace(self._request, layers=tuple(x.name for x in job.layers), exclude=())
                with LayerRun(self._model, options, len(job.layers), first.layouts) as run:
                    one = Pass(job, self._store, self._source, run, first)
                    estimate = one.estimate(todo, self._processes.size)
                    if self._report is not None and self._processes.rank == 0:
                        self._report(estimate)
                    one.run(todo[self._processes.rank :: self._processes.size], estimate, self._is_mute)
            self._processes.wait()
            self._processes.first_does(lambda: job.finish(self._store))
        finally:
            lock.release()

    def _require_same_job(self, job: Job, todo: npt.NDArray[np.int64], first: First) -> None:
        """Refuse to go on with what was begun with other data or another model, by what is done of it."""
        done = np.setdiff1d(np.arange(job.batches), todo).tolist()
        if not done:
            return
        data = Data(job.rows, job.labels, job.holdings, {})
        stored = Stored(data.columns(self._store)[0].raw(), "inputs", self._store)
        if 0 in done:
            stored.compare(0, first.opening.inputs)
            for layer in job.layers:
                column = layer_column(self._folder, layer, self._settings, job.rows)
                self._require_features(layer, column.raw(), 0, first.features, 0)
        if not job.holdings or job.holdings != self._source.holdings:
            for row, inputs in self._source.inputs(done):
                stored.compare(row, inputs)


def _is_reduction(text: str) -> bool:
    try:
        parse_reduction(text)
    except ProbeError:  # a user's own
        return False
    return True


def _described(settings: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(settings).items())
