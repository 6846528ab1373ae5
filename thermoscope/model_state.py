"""The modes of a model's modules, which are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_eval_mode", "preserved_modes"]


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Whether each module trains is on leaving what it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The whole model in eval mode; each module is on leaving in the mode that it was in."""
    with preserved_modes(model):
        model.eval()
        yield
