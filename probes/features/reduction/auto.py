"""The reduction that suits a layer, for models as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..layout import Features
from .contract import Reduction, require_count
from .flatten import Flatten
from .pool import Pool
from .subset import Subset
from .token import Token

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto(Reduction):
    """As many numbers as fit `limit`, for every layer of a model, so that their probes can be compared.

    A layer of at most `limit` numbers is taken whole. A larger map is averaged over the finest grid of its
    own proportions that fits, tokens (B, T, C) over their positions, because the next batch may have more
    or fewer of them; what is still too large, or has no known positions, is a random subset.
    """

    limit: int = 4096
    forms: ClassVar[tuple[str, ...]] = ("auto[:limit]",)

    def __post_init__(self) -> None:
        require_count(self, self.limit)

    def settled(self, features: Features) -> tuple[Reduction, ...]:
        """What fits the limit."""
        if features.are_tokens:
            summary: tuple[Reduction, ...] = (Token("mean"),)
        elif features.numbers <= self.limit:
            return (Flatten(),)
        elif not 1 <= len(features.positions) <= 3:
            return (Subset(self.limit),)
        else:
            grid = _finest_grid(features.positions, self.limit // features.channels)
            summary = (Pool("avg", grid[0] if len(set(grid)) == 1 else grid),)
        return (*summary, Subset(self.limit)) if features.channels > self.limit else summary

    def __str__(self) -> str:
        return f"auto:{self.limit}"


def _finest_grid(positions: tuple[int, ...], cells: int) -> tuple[int, ...]:
    """The finest grid of a map's own proportions that has at most so many cells."""
    grid, longest = positions, max(positions)
    while math.prod(grid) > max(cells, 1):
        longest -= 1
        grid = tuple(max(1, round(n * longest / max(positions))) for n in positions)
    return grid
