"""A survey of all the places in a model where features can be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from thermoscope.errors import ProbeError
from thermoscope.random_state import preserved_random_state

from .axes import Axes
from .patterns import HookPoint, Selection
from .taps import Taps
from .tracing import AxisTrace

__all__ = ["hook_points"]


def hook_points(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[tuple[HookPoint, tuple[int, ...]]]:
    """Every hook point of one forward, with its layout, and the shape of its features, in execution order.

    Args:
        model: left as it was: no gradients, and its modes and all random streams are kept.
        run: calls the model once, as in `lambda model: model(x)`.

    Raises:
        ProbeError: if `run` is no such function, or the forward cannot be followed.
    """
    if not callable(run):
        raise ProbeError(
            "hook_points needs a function that calls the model, as in lambda model: model(x), not a "
            f"{type(run).__name__}."
        )
    survey = _Survey()
    taps = Taps(model, Selection(re.compile(r"[^:]*")), survey, trace=survey.trace, skipped={})
    try:
        with preserved_random_state(), torch.no_grad():
            run(model)
    finally:
        taps.detach()
    if taps.error is not None:
        raise taps.error
    return survey.found


class _Survey:
    def __init__(self) -> None:
        self.found: list[tuple[HookPoint, tuple[int, ...]]] = []
        self.trace = AxisTrace()
        self._axes: list[Axes | None] = []

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return True

    def receive(self, point: HookPoint, value: Any) -> None:
        packed = isinstance(value, PackedSequence)
        self._axes.append(None if packed or value.is_nested else self.trace.axes_of(value))
        self.found.append((point, tuple(value.data.shape) if packed else _shape(value)))

    def end(self) -> None:
        letters = ["BTC" if axes is None else self.trace.letters(axes) for axes in self._axes]
        self.found = [
            (replace(point, layout=layout), shape)
            for (point, shape), layout in zip(self.found, letters, strict=True)
        ]


def _shape(value: torch.Tensor) -> tuple[int, ...]:
    """With a -1 where the parts of a nested tensor differ."""
    return tuple(value.shape) if not value.is_nested else (value.size(0), -1, value.size(-1))
