"""Averages and maxima over a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from thermoscope.errors import ProbeError

from ..layout import Features
from .contract import Reduction, Step, is_count
from .token import token

__all__ = ["Pool"]

_POOLS: dict[str, tuple[Callable[..., torch.Tensor], ...]] = {
    "avg": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}


@dataclass(frozen=True)
class Pool(Reduction):
    """Average or maximum per channel over a grid of `size` cells a side, or of `(4, 6)` cells, say.

    With 1 it is over all positions.
    """

    kind: Literal["avg", "max"] = "avg"
    size: int | tuple[int, ...] = 1
    forms: ClassVar[tuple[str, ...]] = ("avg[:grid]", "max[:grid]")
    needs_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) and self.size else (self.size,)
        if self.kind not in ("avg", "max") or not all(is_count(side) for side in sides):
            raise ProbeError(
                f"{self!r} cannot be: the kind is 'avg' or 'max', and the size a whole number from 1 on, or "
                "one for each direction."
            )

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """Refuse a grid that the layer's positions do not have."""
        self._require_grid(features, name)
        return self._pool

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self._sides(1)))}"

    @classmethod
    def from_text(cls, word: str, numbers: tuple[int, ...]) -> Reduction:
        """The word is the kind."""
        size = numbers if len(numbers) > 1 else numbers[0] if numbers else 1
        return cls(word, size)  # type: ignore[arg-type]  # one of `forms`

    def _sides(self, directions: int) -> tuple[int, ...]:
        return self.size if isinstance(self.size, tuple) else (self.size,) * directions

    def _require_grid(self, features: Features, name: str) -> None:
        positions = features.positions
        if not positions:
            raise ProbeError(f"layer {name!r} has no positions to pool over; use 'flatten' or 'subset:k'.")
        sides = self._sides(len(positions))
        if self.size == 1:
            return
        if len(sides) != len(positions) or len(positions) > 3:
            raise ProbeError(
                f"layer {name!r} has positions in {len(positions)} direction{'s'[: len(positions) - 1]}, so "
                f"it cannot be pooled to the grid of {str(self)!r}; use {self.kind!r}, or one number of "
                "cells for each."
            )
        if any(side > n for side, n in zip(sides, positions, strict=True)):
            raise ProbeError(
                f"layer {name!r} has {'x'.join(map(str, positions))} positions, fewer than the grid "
                f"{'x'.join(map(str, sides))} asked for."
            )
        if features.valid is not None:
            raise ProbeError(
                f"layer {name!r} has padding, which the cells of {str(self)!r} would mix with data; use "
                f"{self.kind!r}."
            )

    def _pool(self, features: Features) -> Features:
        if self.size == 1 and features.valid is not None:
            return Features(token(features, "mean") if self.kind == "avg" else _valid_maximum(features), 1)
        if self.size == 1:
            dims = tuple(i for i in range(1, features.value.ndim) if i != features.channel)
            if self.kind == "max":
                return Features(features.value.amax(dims), 1)
            return Features(features.value.mean(dims, dtype=torch.float32), 1)
        directions = len(features.positions)
        pool = _POOLS[self.kind][directions - 1]
        return Features(pool(features.channels_first().float(), self._sides(directions)), 1)


def _valid_maximum(features: Features) -> torch.Tensor:
    assert features.valid is not None
    value = features.channels_last()
    return value.masked_fill(~features.valid[..., None], float("-inf")).amax(1)
