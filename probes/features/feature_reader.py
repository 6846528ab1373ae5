"""The receiver of the taps: reduced features of the selected layers, forward by forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from thermoscope.errors import ProbeError
from thermoscope.nearest import the_nearest

from ..user_model import plain_arithmetic
from .axes import Axes
from .buffers import Buffers
from .layout import GivenLayouts, Layout, LayoutText
from .nests import strided
from .patterns import HookPoint, glob_matches
from .reduction import BoundReduction, Reduce, bind, chain_of
from .tracing import AxisTrace

__all__ = ["Batch", "FeatureReader", "Settled"]

Batch: TypeAlias = dict[
    str, tuple[torch.Tensor, torch.Tensor | None]
]  # features and valid positions by layer


@dataclass(frozen=True)
class _Waiting:
    """A copy of a layer's features until its layout is known."""

    axes: Axes
    value: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Settled:
    """How layers are reduced, and which of them somebody relies on."""

    bound: dict[str, BoundReduction]
    layouts: dict[str, Layout]
    used: set[str]


class FeatureReader:
    """What the taps of a model report to: it reduces each layer's features to a small copy.

    Forwards in training mode with gradients are read, and all forwards inside `reading_everything()`.

    Args:
        model: the model, for its mode.
        reduce: a reduction or its text, or these by glob, the first match counting.
        seed: of random subsets and projections.
        layout: what the user says of layouts; see `GivenLayouts`.
        is_lenient: layers that cannot be reduced are left out, with the reason in `skipped`.
        stored: the reduction of a layer for which `reduce` was not meant, or None.

    Attributes:
        trace: by which the layouts of new layers are found, in the forward in which they are seen first.
        features: of the last whole forward that was read, in execution order, until somebody takes them.
        is_armed: whether training forwards are read; if not, only that there was one is noted.
        bound: the reduction settled for each layer.
    """

    def __init__(
        self,
        model: nn.Module,
        reduce: Reduce | Mapping[str, Reduce],
        seed: int,
        layout: LayoutText | None = None,
        *,
        is_lenient: bool,
        stored: Callable[[str], Reduce | None] = lambda _: None,
    ):
        for one in reduce.values() if isinstance(reduce, Mapping) else [reduce]:
            chain_of(one)  # refuses what has no meaning
        self.features: Batch | None = None
        self.is_armed = True
        self.bound: dict[str, BoundReduction] = {}
        self.skipped: dict[str, str] = {}
        self._model, self._reduce, self._seed, self._is_lenient = model, reduce, seed, is_lenient
        self._stored = stored
        self.trace = AxisTrace()
        self._given = GivenLayouts(layout)
        self._layouts: dict[str, Layout] = {}
        self._waiting: dict[str, _Waiting] = {}  # those whose layout is not known yet
        self._early: dict[str, Axes] = {}  # layers that did not wait
        self._mask: torch.Tensor | None = None
        self._received: list[str] = []  # layers of the forward under way
        self._incoming: Batch = {}
        self.buffers = Buffers()  # of the last training forward
        self._used: set[str] = set()  # layers whose features somebody has taken
        self._thread = 0  # that ran the last whole forward
        self._is_lent = self._reads_all = self._has_run = False
        self._are_globs_known = False

    @contextmanager
    def reading_everything(self) -> Iterator[None]:
        """Read forwards in any mode. Features that wait for their labels are there again afterwards, unless
        their layers have been reduced in another way meanwhile.
        """
        waiting, self._reads_all = self.features, True
        before = {name: _essence(self.bound[name]) for name in waiting or ()}
        try:
            yield
        finally:
            now = {name: _essence(self.bound[name]) for name in before if name in self.bound}
            self.features, self._reads_all = (waiting if now == before else None), False

    def take(self) -> Batch | None:
        """The features, which are then gone. How their layers are reduced is settled by that."""
        features, self.features = self.features, None
        self._used.update(features or ())
        return features

    @contextmanager
    def lent(self) -> Iterator[Batch | None]:
        """Take the features of this thread's last training forward; nobody overwrites them meanwhile.

        Raises:
            ProbeError: if it was another thread's forward.
        """
        if self.features is not None and self._thread != threading.get_ident():
            raise ProbeError(
                "the last training forward ran in another thread than this step(); call both in the same one."
            )
        self._is_lent = True
        try:
            yield self.take()
        finally:
            self._is_lent = False

    def take_notice(self) -> bool:
        """Whether there was a training forward that was not read since this was asked."""
        has_run, self._has_run = self._has_run, False
        return has_run

    def settled(self) -> Settled:
        """How layers are reduced so far, to come back to by `settle`."""
        return Settled(dict(self.bound), dict(self._layouts), set(self._used))

    def settle(self, settled: Settled) -> None:
        """Reduce layers like this, and others as it suits their features."""
        self.trace.is_wanted = not settled.layouts
        self.bound, self._layouts, self._used = settled.bound, settled.layouts, settled.used

    def require_layers(self, known: list[str]) -> None:
        """Refuse a reduction or a layout for layers that there are none of.

        Args:
            known: names of layers, probed or not.

        Raises:
            ProbeError: naming the glob, with the nearest names.
        """
        if self._are_globs_known:
            return
        names = [*known, *self.bound, *self.skipped]
        for argument, globs in (("reduce", self._reduce), ("layout", self._given.by_glob)):
            for glob in globs if isinstance(globs, Mapping) else ():
                if not any(glob_matches(glob, name) for name in names):
                    raise ProbeError(
                        f"{argument} names {glob!r}, and there is no such layer; {the_nearest(glob, names)}."
                    )
        letters = self._given.general
        if letters and all(len(layout.letters) != len(letters) for layout in self._layouts.values()):
            raise ProbeError(
                f"layout={letters!r} is for {len(letters)} dimensions, and no layer has as many."
            )
        self._are_globs_known = True

    def forget(self) -> None:
        """Drop features and their memory."""
        self.features, self._incoming, self.buffers = None, {}, Buffers()

    # -- what the taps call -------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether to read this forward."""
        is_training = self._model.training and torch.is_grad_enabled()
        self._has_run |= is_training and not self.is_armed
        if not self._reads_all and not (is_training and self.is_armed and not self._is_lent):
            return False
        self._received, self._incoming, self._waiting, self._early = [], {}, {}, {}
        self.trace.is_wanted = self.trace.is_wanted or not self._layouts
        self._mask = _token_mask(kwargs)
        if not self._reads_all:
            self.features = None  # their memory is about to be written
        for name in self.bound.keys() - self._used:  # nobody has relied on it: inputs may have another size
            del self.bound[name]
        return True

    def receive(self, point: HookPoint, value: torch.Tensor | PackedSequence) -> None:
        """Reduce a layer's features."""
        name = point.name
        if name in self.skipped:
            return
        self._received.append(name)
        with self._leniently(name, value):
            plain, mask = strided(value, name)
            if self._knows_layout(name, value, plain, mask):
                self._incoming[name] = self._read(name, plain, mask)

    def end(self) -> None:
        """The features of a whole forward are there."""
        for name, late in self._waiting.items():
            self._layouts[name] = Layout(self.trace.letters(late.axes))
            with self._leniently(name, late.value):
                self._incoming[name] = self._read(name, late.value, late.mask)
        for name, axes in self._early.items():
            if Layout(self.trace.letters(axes)) != self._layouts[name]:
                raise ProbeError(
                    f"layer {name!r} was taken for {self._layouts[name].letters}, and what ran after it "
                    f"shows {self.trace.letters(axes)}; say which it is with layout={{{name!r}: ...}}."
                )
        if self._waiting or self._early:
            self.trace.is_wanted = False
        self._waiting, self._early = {}, {}
        self.features = {name: self._incoming[name] for name in self._received if name in self._incoming}
        self._incoming, self._thread = {}, threading.get_ident()

    def _knows_layout(
        self,
        name: str,
        value: torch.Tensor | PackedSequence,
        plain: torch.Tensor | PackedSequence,
        mask: torch.Tensor | None,
    ) -> bool:
        """Whether the layer can be read now; if not, it waits for the end of the forward, or the next."""
        if isinstance(plain, PackedSequence) or isinstance(value, PackedSequence) or value.is_nested:
            self._layouts[name] = Layout("BTC")
            return True
        if plain.ndim < 2:
            raise ProbeError(
                f"layer {name!r} gives one number per example; a probe needs at least two dimensions."
            )
        if name in self._layouts and (name in self._used or len(self._layouts[name].letters) == plain.ndim):
            return True
        given = self._given.of(name, plain.ndim)
        if given is not None:
            self._layouts[name] = given
            return True
        if not self.trace.is_active:
            self.trace.is_wanted = True
            return False
        axes = self.trace.axes_of(value)
        layout = Layout(self.trace.letters(axes))
        if self.trace.is_final(layout.letters):
            self._layouts[name], self._early[name] = layout, axes
            return True
        self._waiting[name] = _Waiting(axes, plain.clone(), mask)
        return False

    @contextmanager
    def _leniently(self, name: str, value: torch.Tensor | PackedSequence) -> Iterator[None]:
        """Note a layer that cannot be read, if that is permitted."""
        try:
            device = value.data.device if isinstance(value, PackedSequence) else value.device
            with plain_arithmetic(device.type):
                yield
        except ProbeError as error:
            if not self._is_lenient or name in self.bound:
                raise
            self.skipped[name] = str(error)

    def _read(
        self, name: str, value: torch.Tensor | PackedSequence, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = self._layouts[name].features(value, self._mask if mask is None else mask, name)
        if name not in self.bound:
            self.bound[name] = bind(self._reduction_of(name), features, seed=self._seed, name=name)
            if not self.bound[name].size:
                raise ProbeError(
                    f"layer {name!r} has no features: its shape is {tuple(features.value.shape)}."
                )
        if self._reads_all:
            return self.bound[name](features)
        # Nobody holds the features of an earlier training forward any more.
        return self.bound[name](features, partial(self.buffers.of, name))

    def _reduction_of(self, name: str) -> Reduce:
        stored = self._stored(name)
        if stored is not None:
            return stored
        if not isinstance(self._reduce, Mapping):
            return self._reduce
        return next((r for glob, r in self._reduce.items() if glob_matches(glob, name)), "auto")


def _essence(bound: BoundReduction) -> tuple[str, int, tuple[int, ...]]:
    """All of a reduction but its functions, which follow from it and the layer's name."""
    return bound.text, bound.size, bound.positions


def _token_mask(kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which tokens are data, from the arguments that models take for it: bool (B, T)."""
    mask, padding = kwargs.get("attention_mask"), kwargs.get("src_key_padding_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask.bool()
    return ~padding if isinstance(padding, torch.Tensor) and padding.dtype == torch.bool else None
