"""Random combinations of a layer's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from thermoscope.errors import ProbeError

from ..layout import Features
from ..random_features import random_signs
from .contract import Reduction, Step, require_count, sized

__all__ = ["Project"]

_MAX_PROJECTION = 2**28  # entries of a random matrix: 1 GiB


@dataclass(frozen=True)
class Project(Reduction):
    """`k` random combinations with signs +1 and -1 over sqrt(k), the same for a seed and layer name."""

    k: int = 1000
    forms: ClassVar[tuple[str, ...]] = ("project:k",)

    def __post_init__(self) -> None:
        require_count(self, self.k)

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """Refuse a layer whose matrix would not fit 1 GiB."""
        total = features.numbers
        if total * self.k > _MAX_PROJECTION:
            raise ProbeError(
                f"projecting the {total:,} numbers of layer {name!r} to {self.k:,} needs a matrix of "
                f"{total * self.k * 4 / 2**30:.1f} GiB; pool first, as in 'avg:2,project:{self.k}'."
            )
        matrix = random_signs(total, self.k, seed=seed, name=name).div_(math.sqrt(self.k))
        matrix = matrix.to(features.value.device)
        return lambda f: Features(sized(f, total, name).float() @ matrix.to(f.value.device), 1)

    def __str__(self) -> str:
        return f"project:{self.k}"
