"""A survey of all the places in a model where features can be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .errors import ProbeError
from .selection import HookPoint, Selection
from .streams import preserved_random_state
from .taps import Taps

__all__ = ["hook_points"]


def hook_points(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[tuple[HookPoint, tuple[int, ...]]]:
    """Every hook point of one forward and the shape of its features, in execution order.

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
    taps = Taps(model, Selection(re.compile(r"[^:]*")), survey, is_lenient=True)
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

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return True

    def receive(self, point: HookPoint, value: Any) -> None:
        tensor = value if isinstance(value, torch.Tensor) else value.data
        self.found.append((point, tuple(tensor.shape)))

    def end(self) -> None:
        pass
