"""The contents of a feature store's folder: what the records say, and where the arrays are.

data.json       rows, kinds of labels, holdings of the data set, digests
labels.npy      or labels-NAME.npy: (rows, ...), int64 or float32
inputs.npy      a digest of each example, (rows,), uint64
0123456789ab/   a checkpoint, by the SHA-256 of its structure and weights
    manifest.json    the model, settings, layers, digests
    LAYER.npy        (rows, size), float32 or float16
    unfinished.json, progress    while layers are being extracted
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from thermoscope.errors import ProbeError

from .columns import Column, Digest, file_name
from .records import checksum, read_record, write_record
from .rows import SINGLE, LabelKinds, StoredLayer
from .writer import Stored

__all__ = ["Data", "Manifest", "Settings", "checkpoint_folder", "checkpoints", "layer_column"]


@dataclass(frozen=True)
class Settings:
    """What all layers of a checkpoint share: dtype of the files, autocast, seed of random reductions."""

    dtype: str
    autocast: str | None
    seed: int


@dataclass(frozen=True)
class Data:
    """The rows that all checkpoints have in common.

    Attributes:
        rows: examples.
        labels: by name of the label set, dtype and shape of one row.
        holdings: a digest of what the loader's data set was; empty if that cannot be said.
        digests: by file name.
    """

    rows: int
    labels: LabelKinds
    holdings: str
    digests: Mapping[str, Digest]

    def columns(self, store: Path) -> list[Column]:
        """The inputs' digests, then the label sets."""
        inputs = Column(store / "inputs.npy", "uint64", self.rows, ())
        names = {
            name: "labels.npy" if name == SINGLE else file_name(f"labels-{name}") for name in self.labels
        }
        return [inputs, *(Column(store / names[n], d, self.rows, s) for n, (d, s) in self.labels.items())]

    def stored(self, store: Path) -> list[Stored]:
        """The same, to compare others with."""
        what = ["inputs", *(f"labels {name}".strip() for name in self.labels)]
        return [Stored(c.read(), text, store) for c, text in zip(self.columns(store), what, strict=True)]

    def write(self, store: Path) -> None:
        """Put it on record."""
        write_record(store / "data.json", asdict(self))

    @staticmethod
    def read(store: Path) -> Data | None:
        """What is on record, or None."""
        content = read_record(store / "data.json")
        if content is None:
            return None
        labels = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["labels"].items()}
        return Data(content["rows"], labels, content["holdings"], _digests(content))

    @property
    def checksum(self) -> str:
        """What a manifest remembers of it."""
        return checksum(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's features.

    Attributes:
        model: SHA-256 of the model's structure and weights.
        settings: what the layers share.
        data: the data's checksum.
        layers: in execution order.
        digests: by layer.
    """

    model: str
    settings: Settings
    data: str
    layers: tuple[StoredLayer, ...]
    digests: Mapping[str, Digest]

    def write(self, store: Path) -> None:
        """Put it on record."""
        write_record(checkpoint_folder(store, self.model) / "manifest.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        """What is on record, or None.

        Raises:
            ProbeError: if the folder has another model's name.
        """
        content = read_record(folder / "manifest.json")
        if content is None:
            return None
        if not content["model"].startswith(folder.name):
            raise ProbeError(
                f"{folder / 'manifest.json'} belongs to the model {content['model'][:12]}; delete the folder "
                f"{folder} and extract again."
            )
        return Manifest(
            content["model"],
            Settings(**content["settings"]),
            content["data"],
            tuple(StoredLayer(**layer) for layer in content["layers"]),
            _digests(content),
        )

    def require_data(self, store: Path) -> None:
        """Refuse a store whose data are not those of this checkpoint.

        Raises:
            ProbeError: naming the file and what to do.
        """
        data = Data.read(store)
        if data is None or data.checksum != self.data:
            state = "is missing" if data is None else f"is not that of the checkpoint {self.model[:12]}"
            raise ProbeError(f"{store / 'data.json'} {state}; delete {store} and extract again.")


def checkpoint_folder(store: Path, model: str) -> Path:
    """Where a checkpoint's features are."""
    return store / model[:12]


def checkpoints(store: Path) -> list[Path]:
    """The folders of a store's checkpoints, finished or not."""
    if not store.is_dir():
        return []
    return sorted(path for path in store.iterdir() if re.fullmatch("[0-9a-f]{12}", path.name))


def layer_column(folder: Path, layer: StoredLayer, settings: Settings, rows: int) -> Column:
    """The array of a layer."""
    return Column(folder / file_name(layer.name), settings.dtype, rows, (layer.size,))


def _digests(content: Mapping[str, Any]) -> dict[str, Digest]:
    return {name: Digest(**digest) for name, digest in content["digests"].items()}
