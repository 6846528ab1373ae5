"""FeatureStore: the features of a fixed model on a data set, on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from thermoscope.errors import ProbeError
from thermoscope.nearest import the_nearest

from ..arguments import whole_number
from ..digests import model_digest
from ..features.layout import LayoutText
from ..features.patterns import Pattern
from ..features.reduction import Reduce
from ..user_model import Forward, default_forward, require_forward, unwrap
from .columns import Column, Digest
from .contents import Data, Manifest, checkpoint_folder, checkpoints, layer_column
from .estimate import Estimate
from .extraction import Extraction
from .rows import SINGLE, Request

__all__ = ["FeatureStore"]


class FeatureStore:
    """Features of chosen layers for every row of a data set: `store["layer1"]` is an array (n, size).

    Made with `extract`, or found again with `open`. A folder holds one data set and any number of checkpoints
    and layers; the arrays are memory-mapped.

    Attributes:
        path: the folder.
        model: SHA-256 of the model's structure, weights and buffers.
        layers: names in execution order.
        reductions: how each layer was reduced, and what was: `"avg:8 of BCHW 64x56x56, auto:4096"`.
        skipped: layers that `"auto"` chose but that cannot be stored, and why.
        n: rows.
        label_sets: labels (n, ...), int64 or float32, by name of the set; `""` is a single one's.
    """

    def __init__(
        self,
        path: Path,
        data: Data,
        manifest: Manifest,
        layers: Sequence[str],
        skipped: Mapping[str, str] = MappingProxyType({}),
    ):
        """Used by `extract` and `open`."""
        chosen = [layer for layer in manifest.layers if layer.name in layers]
        folder = checkpoint_folder(path, manifest.model)
        self.path, self.model, self.n = path, manifest.model, data.rows
        self.layers = tuple(layer.name for layer in chosen)
        self.reductions = {layer.name: layer.described or layer.reduction for layer in chosen}
        self.skipped = dict(skipped)
        self._columns = {
            layer.name: layer_column(folder, layer, manifest.settings, data.rows) for layer in chosen
        }
        self._files: list[tuple[Column, Digest]] = [
            *((column, data.digests[column.path.name]) for column in data.columns(path)),
            *((column, manifest.digests[name]) for name, column in self._columns.items()),
        ]
        for column, digest in self._files:
            column.check(digest)
        self.label_sets: dict[str, npt.NDArray[Any]] = {
            name: np.array(column.read())
            for name, column in zip(data.labels, data.columns(path)[1:], strict=True)
        }

    @classmethod
    def extract(
        cls,
        model: nn.Module,
        loader: Iterable[Any],
        path: str | os.PathLike[str],
        *,
        layers: Pattern | Iterable[Pattern] = "auto",
        exclude: Pattern | Iterable[Pattern] = (),
        reduce: Reduce | Mapping[str, Reduce] = "auto",
        layout: LayoutText | None = None,
        dtype: str = "float32",
        autocast: torch.dtype | None = None,
        forward: Forward | None = None,
        seed: int = 0,
        progress: bool = True,
        report: Callable[[Estimate], None] | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> FeatureStore:
        """Extract what is asked for and not there yet, in one pass over the data.

        The model runs in eval mode without gradients, up to the last layer that is needed; its modes and all
        random streams are restored. Killed at any moment, the same call continues where it was, with a loss
        of seconds, and ends with the same bytes. Several processes that share a file system take batches in
        turn; any number of them, with as many threads each, gives the same bytes.

        What is in the store already counts only if it is what this call would give. A checkpoint is known by
        its structure, weights and buffers. What else a model computes by (hooks, attributes, `forward`) shows
        in its features of the first batch, which are compared with the stored ones, and where all layers are
        there in those of two more batches. Differences up to a thousandth of a feature's root mean square
        over those rows (3 % in half precision) pass for rounding. The inputs of all rows are compared with
        their digests, unless a `DataLoader`'s data set holds the same tensors, arrays and texts in the same
        order, and the files it names have their size and time of change: then those of three batches are.
        (So a data set that can only be asked, such as an open database, is known by three batches.)

        Args:
            model: any module. DDP and `torch.compile` wrappers are looked through.
            loader: batches for `forward`, the same in every pass: a `DataLoader` without shuffling, or
                anything that can be iterated again and again (which is gone through once more to be counted).
            path: a folder; it need not exist.
            layers, exclude, reduce, layout, seed: as for `ProbeSet`; the random subsets are the same, too. A
                store has one row per example, so `reduce="positions"` is refused.
            dtype: of the files: "float32" or "float16".
            autocast: run the model in mixed precision of this type.
            forward: `forward(model, batch) -> (output, labels)`; see `default_forward`. One that does more
                with the output than to return it has the model run whole.
            progress: show a bar on a terminal.
            report: called before the pass with what it will write and take.
            process_group: whose processes share the work; by default all, if `torch.distributed` is running.

        Returns:
            The store with the layers that were asked for.

        Raises:
            ProbeError: if the disk is too small, or `path` holds other data or settings, or is damaged; for
                features that are not finite; and as `ProbeSet`.
        """
        if dtype not in ("float32", "float16"):
            raise ProbeError(f"dtype={dtype!r} cannot be stored; use 'float32' or 'float16'.")
        if not isinstance(model, nn.Module):
            raise ProbeError(f"the model is a {type(model).__name__}; give a torch.nn.Module.")
        if not isinstance(loader, Iterable):
            raise ProbeError(
                f"the loader is a {type(loader).__name__}; give a DataLoader, or batches in a list."
            )
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ProbeError(f"autocast={autocast!r} is no mixed precision; use torch.bfloat16 or float16.")
        forward = default_forward if forward is None else forward
        require_forward(forward)
        seed = whole_number("seed", seed)
        request = Request(layers, exclude, reduce, forward, autocast, seed, layout)
        store, inner = _folder(path), unwrap(model)
        extraction = Extraction(inner, loader, store, request, dtype, progress, report, process_group)
        return cls(store, *extraction.run())

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: nn.Module | str | None = None) -> FeatureStore:
        """A store that is there, with all its layers.

        Every file's size is checked, files up to 64 MiB whole and larger ones in 64 rows; see `verify`.

        Args:
            path: the folder.
            model: the checkpoint, or the first digits of its digest; not needed if there is only one.

        Raises:
            ProbeError: if it is not there, unfinished or damaged; the message says which file and what to do.
        """
        store = _folder(path)
        digest = model_digest(unwrap(model)) if isinstance(model, nn.Module) else model or ""
        data = Data.read(store)
        manifests = [m for folder in checkpoints(store) if (m := Manifest.read(folder)) is not None]
        if data is None or not manifests:
            state = "is unfinished" if checkpoints(store) else "does not exist"
            raise ProbeError(f"the feature store {store} {state}; call FeatureStore.extract with this path.")
        names = ", ".join(m.model[:12] for m in manifests)
        found = [m for m in manifests if m.model.startswith(digest)]
        if not found:
            raise ProbeError(
                f"the feature store {store} has the checkpoints {names} and not {digest[:12]}, so its "
                "weights or structure differ; call FeatureStore.extract to add it."
            )
        if len(found) > 1:
            raise ProbeError(f"the feature store {store} has the checkpoints {names}; say which with model=.")
        found[0].require_data(store)
        return cls(store, data, found[0], [layer.name for layer in found[0].layers])

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The labels (n, ...), if there is one set of them: int64, or float32."""
        if set(self.label_sets) != {SINGLE}:
            raise ProbeError(
                f"the store has the label sets {sorted(self.label_sets)}; take one from label_sets."
            )
        return self.label_sets[SINGLE]

    def __getitem__(self, layer: str) -> np.memmap[Any, Any]:
        """The features of a layer: (n, size), read-only, memory-mapped."""
        if layer not in self._columns:
            raise ProbeError(f"the store has no layer {layer!r}; {the_nearest(layer, self.layers)}.")
        return self._columns[layer].read()

    def __len__(self) -> int:
        return self.n

    def verify(self, *, progress: bool = True) -> None:
        """Read every file and compare it with its digest.

        Raises:
            ProbeError: naming the first that was altered.
        """
        for column, digest in tqdm(self._files, "verify", leave=False, disable=None if progress else True):
            column.check(digest, fully=True)

    def model_error(self) -> tuple[float, float] | None:
        """The model's own error and its standard error, if layer `"output"` is stored whole as logits.

        Rows whose label is no class (negative, or not below the number of logits) do not count.
        """
        if (
            self.reductions.get("output", "").partition(" of ")[0] != "flatten"
            or SINGLE not in self.label_sets
        ):
            return None
        logits, y = self["output"], self.labels
        counted = (y >= 0) & (y < logits.shape[1])
        if y.dtype != np.int64 or y.ndim != 1 or not counted.any():
            return None
        chunks = range(0, self.n, 4096)
        answers = np.concatenate([logits[i : i + 4096].argmax(1) for i in chunks])
        wrong = (answers != y)[counted]
        error = float(wrong.mean())
        return error, math.sqrt(error * (1 - error) / max(1, len(wrong) - 1))


def _folder(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ProbeError(f"path={path!r} is no folder; give its name.")
    return Path(path)
