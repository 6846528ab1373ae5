"""One row per position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thermoscope.errors import ProbeError

from ..layout import Features
from .contract import Reduction, Step

__all__ = ["Positions"]


@dataclass(frozen=True)
class Positions(Reduction):
    """One row per token or pixel instead of one per example, for labels (B, T) or (B, H, W)."""

    forms: ClassVar[tuple[str, ...]] = ("positions",)
    needs_layout: ClassVar[bool] = True
    by_position: ClassVar[bool] = True

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """The features as they are, refused if they have no positions."""
        if not features.positions:
            raise ProbeError(f"layer {name!r} has no positions, so it cannot have a label for each of them.")
        return lambda f: f

    def __str__(self) -> str:
        return "positions"
