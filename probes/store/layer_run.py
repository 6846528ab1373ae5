"""Running a model for its features: which layers a request means, and their features batch by batch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn

from thermoscope.errors import ProbeError

from ..features.auto import automatic_layers
from ..features.layer_reader import FeatureReader, Settled
from ..features.layout import Layout, LayoutText
from ..features.patterns import Pattern, Selection
from ..features.reduction import Reduce
from ..features.taps import ForwardStopped, Taps
from ..user_model import Forward, device_of, to_device

__all__ = ["SINGLE", "LayerRun", "Request", "StoredLayer", "Tensors", "listed"]

Tensors: TypeAlias = dict[str, torch.Tensor]
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
class Request:
    """What features are asked for, and how the model is run for them."""

    layers: Sequence[Pattern]
    exclude: Sequence[Pattern]
    reduce: Reduce | Mapping[str, Reduce]
    forward: Forward
    autocast: torch.dtype | None
    seed: int
    layout: LayoutText | None = None

    @property
    def is_auto(self) -> bool:
        """Whether the layers are left to us: those that cannot be stored are then left out."""
        return list(self.layers) == ["auto"]

    def selection(self, model: nn.Module) -> Selection:
        """The hook points that are meant."""
        return Selection(automatic_layers(model) if self.is_auto else self.layers, self.exclude)


def listed(patterns: Pattern | Iterable[Pattern]) -> tuple[Pattern, ...]:
    """One pattern or several, as several."""
    is_one = isinstance(patterns, (str, re.Pattern, type, nn.Module)) or not isinstance(patterns, Iterable)
    return (patterns,) if is_one else tuple(patterns)  # type: ignore[return-value, arg-type]


class LayerRun:
    """A model with its taps: a context in which batches become features.

    Args:
        model: in eval mode.
        request: the layers and reductions, and how to run the model.
        stop_after: layers after which the rest of a forward is left out.
        layouts: where they are known from another run.

    Attributes:
        skipped: layers that `"auto"` chose and that cannot be read, with the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        request: Request,
        stop_after: int | None = None,
        layouts: Mapping[str, Layout] | None = None,
    ):
        self._model, self._request = model, request
        self._reader = FeatureReader(
            model, request.reduce, request.seed, request.layout, is_lenient=request.is_auto
        )
        self._reader.settle(Settled({}, dict(layouts or {}), set()))
        self._reading = self._reader.reading_everything()
        self._taps = Taps(
            model,
            request.selection(model),
            self._reader,
            trace=self._reader.trace,
            skipped=self._reader.skipped if request.is_auto else None,
        )
        self._taps.stop_after = stop_after
        self.skipped = self._reader.skipped

    @property
    def layouts(self) -> dict[str, Layout]:
        """Of the layers that have run."""
        return self._reader.settled().layouts

    def __enter__(self) -> LayerRun:
        self._reading.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._taps.detach()
        self._reader.forget()
        self._reading.__exit__(*error)

    def __call__(self, batch: Any, number: int) -> tuple[Tensors, Tensors]:
        """Features (rows, size) in execution order, and labels (rows, ...) by name, of batch `number`.

        Raises:
            ProbeError: for layers that cannot be read, and labels that are none.
        """
        device = device_of(self._model)
        batch = to_device(batch, device)
        # A model may draw numbers even in eval mode; whichever process runs a batch must draw the same.
        torch.manual_seed(_seed_of_batch(self._request.seed, number))
        autocast = self._request.autocast
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            labels = self._forward(batch)
        features = self._reader.take()
        if self._taps.error is not None:
            raise self._taps.error
        if features is None:
            raise ProbeError("the forward function did not call the model, so no layer could be read.")
        return {name: features[name][0] for name in self._taps.order if name in features}, labels

    def reduction(self, layer: str) -> str:
        """The text of a layer's reduction, once it has run; empty before."""
        return self._reader.bound[layer].text if layer in self._reader.bound else ""

    def stored_layers(self, features: Tensors, rows: int) -> list[StoredLayer]:
        """What to store, by the features of the first batch; `"auto"` leaves out what cannot be.

        Raises:
            ProbeError: for a selection that matched nothing, and layers without one row per example.
        """
        self._taps.require_matches(all_of_them=not self._request.is_auto)
        self._reader.require_layers(self._taps.known_names())
        found = []
        for name, x in features.items():
            problem = self._problem(name, len(x), rows)
            if problem and not self._request.is_auto:
                raise ProbeError(problem)
            if problem:
                self.skipped[name] = problem
            else:
                bound = self._reader.bound[name]
                found.append(StoredLayer(name, bound.text, x.shape[1], bound.described))
        if not found:
            reasons = "".join(f" {reason}" for reason in list(self.skipped.values())[:1])
            raise ProbeError(f"no layer of this model can be stored; name some with layers=[...].{reasons}")
        return found

    def _problem(self, name: str, given: int, rows: int) -> str | None:
        if self._reader.bound[name].positions:
            return (
                f"layer {name!r} was to be reduced to one row per position, but a feature store has one row "
                "per example; use another reduction, such as reduce='auto'."
            )
        if given != rows:
            return (
                f"layer {name!r} gives {given} rows for a batch of {rows} examples, so its rows are not "
                "examples (windows or tokens, perhaps); take the block around it."
            )
        return None

    def _forward(self, batch: Any) -> Tensors:
        forward = self._request.forward
        if self._taps.stop_after is not None:
            try:
                return _by_name(forward(_Stoppable(self._model), batch)[1])  # type: ignore[arg-type]
            except Exception:
                # This forward function does more with the model's output than to return it, so it needs one;
                # if it failed for another reason it fails again.
                self._taps.stop_after = None
        return _by_name(forward(self._model, batch)[1])


class _Stoppable:
    """The model, whose call gives nothing when the forward was stopped."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._model(*args, **kwargs)
        except ForwardStopped:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


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
