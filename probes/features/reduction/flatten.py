"""Every number of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..layout import Features
from .contract import Reduction, Step

__all__ = ["Flatten", "flat"]


@dataclass(frozen=True)
class Flatten(Reduction):
    """Every number of the layer."""

    forms: ClassVar[tuple[str, ...]] = ("flatten",)

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """Nothing depends on the layer."""
        return flat

    def __str__(self) -> str:
        return "flatten"


def flat(features: Features) -> Features:
    """The features as one row of numbers per example."""
    return Features(features.value.flatten(1), 1)
