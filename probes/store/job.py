"""The job: what one pass over the data adds to a store, on record until it is finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thermoscope.errors import ProbeError
from thermoscope.files import drop_partial_files, locked, readable_errors

from .columns import Column, Digest, hexadecimal
from .contents import Data, Manifest, Settings, checkpoint_folder, checkpoints, layer_column
from .records import read_record, write_record
from .rows import LabelKinds, StoredLayer
from .writer import Progress

__all__ = ["Job", "Lock"]

_RECORD = "unfinished.json"


@dataclass(frozen=True)
class Job:
    """Layers to add to a checkpoint of a store, and perhaps the data that all checkpoints share.

    The record comes first, then the columns' files, then the file that notes progress; so if there is
    progress, there is the rest. At the end the columns get their headers, the manifest is replaced, and
    record and progress go. Each of these steps may be done again.

    Attributes:
        model: SHA-256 of its structure and weights.
        settings: what all of the checkpoint's layers share.
        layers: those to add.
        order: names of all the layers that the checkpoint then has, in execution order.
        batches, rows: of the data.
        sizes: a checksum of the rows of each batch.
        labels: by name of the label set, dtype and shape of one row.
        holdings: of the data set when it was begun; see `Data`.
        with_data: whether the data's own columns are to be written, too.
    """

    model: str
    settings: Settings
    layers: tuple[StoredLayer, ...]
    order: tuple[str, ...]
    batches: int
    rows: int
    sizes: str
    labels: LabelKinds
    holdings: str
    with_data: bool

    @staticmethod
    def read(folder: Path) -> Job | None:
        """The job on record in a checkpoint's folder, or None."""
        content = read_record(folder / _RECORD)
        if content is None:
            return None
        content["settings"] = Settings(**content["settings"])
        content["layers"] = tuple(StoredLayer(**layer) for layer in content["layers"])
        content["order"] = tuple(content["order"])
        content["labels"] = {n: (dtype, tuple(shape)) for n, (dtype, shape) in content["labels"].items()}
        return Job(**content)

    @property
    def data(self) -> Data:
        """The data as they will be on record, but for their digests."""
        return Data(self.rows, self.labels, self.holdings, {})

    def columns(self, store: Path) -> list[Column]:
        """What is written: the data's own columns, if they are, and the layers."""
        data = self.data.columns(store) if self.with_data else []
        folder = checkpoint_folder(store, self.model)
        return data + [layer_column(folder, layer, self.settings, self.rows) for layer in self.layers]

    def progress(self, store: Path) -> Progress:
        """What is done of it."""
        path = checkpoint_folder(store, self.model) / "progress"
        return Progress(path, self.batches, len(self.columns(store)))

    def todo(self, store: Path) -> npt.NDArray[np.int64]:
        """Numbers of the batches that are not done."""
        done = list(self.progress(store).digests())
        return np.setdiff1d(np.arange(self.batches), np.array(done, dtype=np.int64))

    def prepare(self, store: Path) -> None:
        """Put the job on record and make its files, or find them from an interrupted call.

        Raises:
            ProbeError: for a folder that is no store or has another unfinished job, and a disk too small.
        """
        folder = checkpoint_folder(store, self.model)
        with readable_errors(store, ProbeError):
            self._require_store(store)
            folder.mkdir(parents=True, exist_ok=True)
            drop_partial_files(store)
            Job.clear_traces(store, self.model)
            begun = Job.read(folder)
            if begun is not None and self != replace(begun, with_data=self.with_data, holdings=self.holdings):
                raise ProbeError(
                    f"an extraction of other layers, data or batches is unfinished in {folder}; finish it "
                    f"with the call that began it, or delete {folder}."
                )
            job = begun or self
            _require_space(job.columns(store))
            if begun is None:
                write_record(folder / _RECORD, asdict(self))
            if job.progress(store).exists:
                for column in job.columns(store):
                    column.require_size()
                return
            for column in job.columns(store):
                column.create()
            job.progress(store).create()

    def finish(self, store: Path) -> None:
        """Make the columns, which have all their rows, part of the store.

        Raises:
            ProbeError: if rows are missing.
        """
        with readable_errors(store, ProbeError):
            done = self.progress(store).digests()
            if len(done) < self.batches:
                raise ProbeError(
                    f"{self.batches - len(done)} batches of other processes are not to be seen in {store}; "
                    "all processes must share one file system."
                )
            digests: dict[str, Digest] = {}
            for i, column in enumerate(self.columns(store)):
                column.complete()
                whole = hexadecimal(sum(int(words[i]) for words in done.values()))
                digests[str(column.path)] = Digest(whole, column.sample())
            if self.with_data:
                own = {c.path.name: digests[str(c.path)] for c in self.data.columns(store)}
                replace(self.data, digests=own).write(store)
            self._merged(store, digests).write(store)
            self._clean(store)

    def _merged(self, store: Path, digests: Mapping[str, Digest]) -> Manifest:
        folder = checkpoint_folder(store, self.model)
        data, old = Data.read(store), Manifest.read(folder)
        assert data is not None
        known = {layer.name: layer for layer in (*(old.layers if old else ()), *self.layers)}
        own = {
            layer.name: digests[str(layer_column(folder, layer, self.settings, self.rows).path)]
            for layer in self.layers
        }
        return Manifest(
            self.model,
            self.settings,
            data.checksum,
            tuple(known[name] for name in self.order),
            {**(old.digests if old else {}), **own},
        )

    @staticmethod
    def clear_traces(store: Path, model: str) -> None:
        """Remove what a job leaves that was killed when its layers had already become part of the store."""
        folder = checkpoint_folder(store, model)
        job, manifest = Job.read(folder), Manifest.read(folder)
        if job is not None and manifest is not None and set(job.layers) <= set(manifest.layers):
            job._clean(store)

    def _clean(self, store: Path) -> None:
        self.progress(store).path.unlink(missing_ok=True)
        (checkpoint_folder(store, self.model) / _RECORD).unlink(missing_ok=True)

    def _require_store(self, store: Path) -> None:
        folders = checkpoints(store)
        if self.with_data:
            others = [f for f in folders if f.name != self.model[:12] and (f / _RECORD).exists()]
            if others:
                raise ProbeError(
                    f"the first extraction to {store}, of the checkpoint {others[0].name}, is unfinished; "
                    f"finish it with the call that began it, or delete {store}."
                )
            if not folders and store.exists() and any(store.iterdir()):
                raise ProbeError(f"{store} is not empty and no feature store; choose another folder.")


def _require_space(columns: list[Column]) -> None:
    """Refuse a disk on which these files do not fit, as far as they are not there yet."""
    needed = sum(column.file_bytes - column.allocated() for column in columns)
    free = shutil.disk_usage(columns[0].path.parent).free
    if needed > free:
        raise ProbeError(
            f"the features need {needed / 1e9:,.2f} GB and the disk of {columns[0].path.parent} has "
            f"{free / 1e9:,.2f} GB free; make room, choose fewer layers, a smaller reduction or "
            "dtype='float16'."
        )


class Lock:
    """Keeps a second call out of a store; a killed process leaves none behind."""

    def __init__(self, store: Path):
        self._store = store
        self._file: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            ProbeError: if another process has it.
        """
        with readable_errors(self._store, ProbeError):
            self._store.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._store, os.O_RDONLY)
        with suppress(OSError):  # some network file systems lock no folder that was opened for reading
            try:
                locked(self._file, wait=False)
            except BlockingIOError as error:
                raise ProbeError(
                    f"another process is extracting to {self._store}; wait for its end, or choose another "
                    "folder."
                ) from error

    def release(self) -> None:
        """Give it back, if it was taken."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
