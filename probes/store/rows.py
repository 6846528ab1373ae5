"""Rows: what a batch becomes in a store, and the request by which the model is run for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from thermoscope.errors import ProbeError

from ..features.feature_reader import Batch
from ..features.layer_reader import LayerReader
from ..features.layout import LayoutText
from ..features.patterns import Pattern
from ..features.reduction import Reduce
from ..user_model import Forward, device_of, outcome
from .source import NumberedBatch

__all__ = ["SINGLE", "LabelKinds", "Request", "Rows", "StoredLayer", "layers_to_store"]

Tensors: TypeAlias = dict[str, torch.Tensor]
LabelKinds: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]  # by name of the set: dtype, shape of a row
SINGLE = ""  # the name of the label set where there is only one


@dataclass(frozen=True)
class StoredLayer:
    """A layer of a store.

    Attributes:
        name: of the hook point.
        reduction: its text, which says what was computed.
        size: numbers per row.
        described: the reduction with what was reduced, for readers; stores of version 0.1.0 do not have it.
    """

    name: str
    reduction: str
    size: int
    described: str = field(default="", compare=False)


@dataclass(frozen=True)
class Rows:
    """A batch, its features (rows, size) by layer in execution order, and its labels (rows, ...) by name."""

    batch: NumberedBatch
    features: Tensors
    labels: Tensors

    def of(self, layer: StoredLayer, dtype: str) -> torch.Tensor:
        """A layer's features as they are stored.

        Raises:
            ProbeError: if there are others than were in the first batch.
        """
        x, number, rows = self.features.get(layer.name), self.batch.number, self.batch.rows
        if x is None:
            raise ProbeError(f"layer {layer.name!r} did not run for batch {number}; leave it out.")
        if x.shape != (rows, layer.size):
            raise ProbeError(
                f"layer {layer.name!r} gave {' x '.join(map(str, x.shape))} features for batch {number} "
                f"instead of {rows} x {layer.size}; keep the input size fixed or pool the layer "
                "(reduce='avg')."
            )
        return x.to(getattr(torch, dtype)).contiguous()

    @property
    def kinds(self) -> LabelKinds:
        """Dtype and shape of a row, by name of the label set."""
        return {n: (str(y.dtype).removeprefix("torch."), tuple(y.shape[1:])) for n, y in self.labels.items()}

    def labels_of(self, kinds: LabelKinds) -> list[torch.Tensor]:
        """The label sets as they are stored.

        Raises:
            ProbeError: if they are of another kind than in the first batch.
        """
        number, rows = self.batch.number, self.batch.rows
        if set(self.labels) != set(kinds):
            raise ProbeError(
                f"batch {number} has the label sets {sorted(self.labels)}, the first one had "
                f"{sorted(kinds)}; give all batches the same."
            )
        for name, (dtype, shape) in kinds.items():
            y = self.labels[name]
            if str(y.dtype) != f"torch.{dtype}" or y.shape != (rows, *shape):
                raise ProbeError(
                    f"batch {number} has labels of shape {tuple(y.shape)} and type {y.dtype}, instead of "
                    f"{(rows, *shape)} and torch.{dtype}; make all batches alike, with one label per example."
                )
        return [self.labels[name].contiguous() for name in kinds]


@dataclass(frozen=True)
class Request:
    """What features are asked for, and how the model is run for them."""

    layers: Pattern | Iterable[Pattern]
    exclude: Pattern | Iterable[Pattern]
    reduce: Reduce | Mapping[str, Reduce]
    forward: Forward
    autocast: torch.dtype | None
    seed: int
    layout: LayoutText | None = None

    def reader(self, model: nn.Module, also: Mapping[str, Reduce]) -> LayerReader:
        """What reads these layers, and some others with reductions of their own."""
        return LayerReader(model, self.layers, self.exclude, self.reduce, self.seed, self.layout, also)

    def rows(self, reader: LayerReader, model: nn.Module, batch: NumberedBatch) -> Rows:
        """Run the model on a batch.

        Raises:
            ProbeError: for layers that cannot be read, and labels that are none.
        """
        device = device_of(model).type

        def forward(model: nn.Module, given: Any) -> tuple[Any, Any]:
            # A model may draw numbers even in eval mode; whichever process runs a batch must draw the same.
            torch.manual_seed(_seed_of_batch(self.seed, batch.number))
            with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
                output, y = outcome(self.forward, model, given)
                return output, _by_name(y)

        _, labels, features = reader.run(forward, batch.given)
        return Rows(batch, {name: x for name, (x, _) in features.items()}, labels)


def layers_to_store(reader: LayerReader, first: Rows) -> list[StoredLayer]:
    """The layers that are asked for, by the first batch; `"auto"` leaves out what cannot be stored.

    Raises:
        ProbeError: for a selection that matched nothing, and layers without one row per example.
    """
    reader.require_all_found()
    asked: Batch = {name: (x, None) for name, x in first.features.items() if reader.is_asked(name)}
    for name in list(asked):
        if reader.bound[name].positions:
            reader.leave_out(
                asked,
                name,
                f"layer {name!r} was to be reduced to one row per position, but a feature store has one row "
                "per example; use another reduction, such as reduce='auto'.",
            )
    reader.require_examples(asked, len(next(iter(first.labels.values()))))
    bound = reader.bound
    return [StoredLayer(n, bound[n].text, x.shape[1], bound[n].described) for n, (x, _) in asked.items()]


def _by_name(y: Any) -> Tensors:
    """Label sets as int64 or float32, each (rows, ...)."""
    given = dict(y) if isinstance(y, Mapping) else {SINGLE: y}
    try:
        labels = {str(name): torch.as_tensor(value) for name, value in given.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbeError("the labels are no numbers; number the classes, from 0.") from error
    if any(value.is_complex() for value in labels.values()):
        raise ProbeError("the labels are complex numbers; give class numbers, or real ones.")
    lengths = {len(value) if value.ndim else None for value in labels.values()}
    if len(lengths) != 1 or None in lengths:
        raise ProbeError("the labels of a batch must be one per example, as many in every label set.")
    return {
        name: value.detach().to(torch.float32 if value.is_floating_point() else torch.int64, copy=True)
        for name, value in sorted(labels.items())
    }


def _seed_of_batch(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/batch/{number}".encode()).digest()[:8], "little")
