"""The reader: reduced features of the selected layers, forward by forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .bound import BoundReduction, bind
from .errors import ProbeError
from .layout import Layout, infer_layout
from .reduction import Reduce, chain_of
from .selection import HookPoint, glob_matches

__all__ = ["Batch", "FeatureReader"]

Batch: TypeAlias = dict[
    str, tuple[torch.Tensor, torch.Tensor | None]
]  # features and valid positions by layer


class FeatureReader:
    """What the taps of a model report to: it reduces each layer's features to a small copy.

    Forwards in training mode with gradients are read, and all forwards inside `reading_everything()`.

    Args:
        model: the model, for its mode.
        reduce: a reduction or its text, or these by glob, the first match counting.
        seed: of random subsets and projections.
        is_lenient: layers that cannot be reduced are left out, with the reason in `skipped`.

    Attributes:
        features: of the last whole forward that was read, until somebody takes them.
        bound: the reduction settled for each layer.
    """

    def __init__(
        self, model: nn.Module, reduce: Reduce | Mapping[str, Reduce], seed: int, *, is_lenient: bool
    ):
        for one in reduce.values() if isinstance(reduce, Mapping) else [reduce]:
            chain_of(one)  # refuses what has no meaning
        self.features: Batch | None = None
        self.bound: dict[str, BoundReduction] = {}
        self.skipped: dict[str, str] = {}
        self._model, self._reduce, self._seed, self._is_lenient = model, reduce, seed, is_lenient
        self._layouts: dict[str, Layout] = {}
        self._mask: torch.Tensor | None = None
        self._incoming: Batch = {}
        self._buffers: dict[str, torch.Tensor] = {}  # the last training forward's copies
        self._reads_all = False

    @contextmanager
    def reading_everything(self) -> Iterator[None]:
        """Read forwards in any mode; features that wait for their labels are there again afterwards."""
        waiting, self._reads_all = self.features, True
        try:
            yield
        finally:
            self.features, self._reads_all = waiting, False

    def take(self) -> Batch | None:
        """The features, which are then gone."""
        features, self.features = self.features, None
        return features

    def forget(self) -> None:
        """Drop features and their memory."""
        self.features, self._incoming, self._buffers = None, {}, {}

    # -- what the taps call -------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether to read this forward."""
        self._incoming = {}
        self._mask = _token_mask(kwargs)
        is_training = self._model.training and torch.is_grad_enabled()
        if is_training and not self._reads_all:
            self.features = None  # their memory is about to be written
        return is_training or self._reads_all

    def receive(self, point: HookPoint, value: torch.Tensor | PackedSequence) -> None:
        """Reduce a layer's features."""
        if point.name in self.skipped:
            return
        tensor = value.data if isinstance(value, PackedSequence) else value
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            try:
                self._incoming[point.name] = self._read(point, value)
            except ProbeError as error:
                if not self._is_lenient or point.name in self.bound:
                    raise
                self.skipped[point.name] = str(error)

    def end(self) -> None:
        """The features of a whole forward are there."""
        self.features, self._incoming = self._incoming, {}

    def _read(
        self, point: HookPoint, value: torch.Tensor | PackedSequence
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        name = point.name
        if name not in self._layouts:
            self._layouts[name] = infer_layout(value, point.module, name)
        features = self._layouts[name].features(
            value.detach() if isinstance(value, torch.Tensor) else value, self._mask
        )
        if name not in self.bound:
            self.bound[name] = bind(self._reduction_of(name), features, seed=self._seed, name=name)
        if self._reads_all:
            return self.bound[name](features)
        copy, valid = self.bound[name](features, self._buffers.get(name))
        self._buffers[name] = copy  # nobody holds the features of an earlier training forward any more
        return copy, valid

    def _reduction_of(self, name: str) -> Reduce:
        if not isinstance(self._reduce, Mapping):
            return self._reduce
        return next((r for glob, r in self._reduce.items() if glob_matches(glob, name)), "auto")


def _token_mask(kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which tokens are data, from the arguments that models take for it: bool (B, T)."""
    mask, padding = kwargs.get("attention_mask"), kwargs.get("src_key_padding_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask.bool()
    return ~padding if isinstance(padding, torch.Tensor) and padding.dtype == torch.bool else None
