"""The extraction: from a request to the one pass over the data that fills in what the store lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from ..errors import ProbeError
from ..host import held_fixed
from .contents import Data, Manifest, Settings, checkpoint_folder
from .digests import model_digest
from .job import Job, Lock
from .layer_run import LayerRun, Request, StoredLayer
from .one_pass import Estimate, First, Pass
from .processes import Processes
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
            answer = None if manifest is None else manifest.requests.get(self._request.text or "")
            if data is not None and manifest is not None and answer is not None:
                return data, manifest, *answer
            first = self._look_at(opening)
            have = [] if manifest is None else list(manifest.layers)
            missing = self._missing(first.layers, have)
            if missing or manifest is None:
                self._pass(self._job(data, have, missing, first), first)
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
        return First(opening, layers, skipped, features, labels, time.perf_counter() - begin)

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
        self, data: Data | None, have: list[StoredLayer], missing: list[StoredLayer], first: First
    ) -> Job:
        labels = {
            name: (str(y.dtype).removeprefix("torch."), tuple(y.shape[1:]))
            for name, y in first.labels.items()
        }
        if data is not None:
            self._require_rows(data)
            if labels != data.labels:
                raise ProbeError(
                    f"the labels are {labels}, in the store {self._store} {dict(data.labels)}: it belongs to "
                    "other data, so choose another folder."
                )
        order = [layer.name for layer in missing]
        if have:  # how the old and the new ones follow one another
            both = replace(
                self._request, layers=[*(layer.name for layer in have), *order], exclude=(), reduce="auto"
            )
            with LayerRun(self._model, both) as run:
                order = list(run(first.opening.batch, 0)[0])
        sizes = self._source.sizes
        return Job(
            model=self._id,
            settings=self._settings,
            layers=tuple(missing),
            order=tuple(order),
            batches=len(sizes),
            rows=int(sizes.sum()),
            sizes=checksum(sizes.tolist()),
            labels=labels,
            with_data=data is None,
        )

    def _note_request(self, first: First) -> None:
        """So that the same request is known without running the model."""
        Job.clear_traces(self._store, self._id)
        manifest, text = Manifest.read(self._folder), self._request.text
        if manifest is not None and text is not None:
            names = tuple(layer.name for layer in first.layers)
            requests = {**manifest.requests, text: (names, first.skipped)}
            replace(manifest, requests=dict(sorted(requests.items()))).write(self._store)

    # -- the pass -----------------------------------------------------------------------------------

    def _pass(self, job: Job, first: First) -> None:
        inputs = first.opening.inputs
        self._processes.require_same(checksum([asdict(job), inputs.tolist()]), "models, data or layers")
        lock = Lock(self._store)
        try:
            self._processes.first_does(lock.acquire)
            self._processes.first_does(lambda: job.prepare(self._store))
            job = Job.read(self._folder) or job
            todo = job.todo(self._store)
            if job.with_data and len(todo) and todo[0] > 0:
                Stored(job.columns(self._store)[0].raw(), "inputs", self._store).compare(0, inputs)
            self._processes.require_same(checksum(todo.tolist()), "views of the store's folder")
            if len(todo):
                options = replace(self._request, layers=tuple(x.name for x in job.layers), exclude=())
                with LayerRun(self._model, options, stop_after=len(job.layers)) as run:
                    one = Pass(job, self._store, self._source, run, first)
                    estimate = one.estimate(todo, self._processes.size)
                    if self._report is not None and self._processes.rank == 0:
                        self._report(estimate)
                    one.run(todo[self._processes.rank :: self._processes.size], estimate, self._is_mute)
            self._processes.wait()
            self._processes.first_does(lambda: job.finish(self._store))
        finally:
            lock.release()


def _described(settings: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in asdict(settings).items())
