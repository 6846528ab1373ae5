"""Some of a layer's numbers, drawn once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..layout import Features
from ..random_features import random_subset
from .contract import Reduction, Step, require_count, sized
from .flatten import flat

__all__ = ["Subset"]


@dataclass(frozen=True)
class Subset(Reduction):
    """`k` of the layer's numbers, always the same ones for a seed and layer name."""

    k: int = 1000
    forms: ClassVar[tuple[str, ...]] = ("subset:k",)

    def __post_init__(self) -> None:
        require_count(self, self.k)

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """All numbers, where there are no more than `k`."""
        total = features.numbers
        if self.k >= total:
            return flat
        index = random_subset(total, self.k, seed=seed, name=name).to(features.value.device)

        def step(f: Features) -> Features:
            value = sized(f, total, name)
            return Features(value.index_select(1, index.to(value.device)), 1)

        return step

    def __str__(self) -> str:
        return f"subset:{self.k}"
