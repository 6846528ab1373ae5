"""Reductions: from a layer's features to the few numbers per example that a probe reads.

A reduction is a value that can be written down (`Pool("avg", 2)`, in text `"avg:2"`); bound to a layer
(see `bind`) it is a function from `Features` to a new float32 matrix. Several in a row are a tuple, or in
text `"avg:2,subset:1000"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from thermoscope.errors import ProbeError

__all__ = [
    "Auto",
    "Flatten",
    "Pool",
    "Positions",
    "Project",
    "Reduce",
    "Reduction",
    "Subset",
    "Token",
    "chain_of",
    "parse_reduction",
    "text_of",
]


@dataclass(frozen=True)
class Flatten:
    """Every number of the layer."""


@dataclass(frozen=True)
class Pool:
    """Average or maximum per channel over a grid of `size` cells a side, or of `(4, 6)` cells, say.

    With 1 it is over all positions.
    """

    kind: Literal["avg", "max"] = "avg"
    size: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) and self.size else (self.size,)
        if self.kind not in ("avg", "max") or not all(_is_count(side) for side in sides):
            raise ProbeError(
                f"{self!r} cannot be: the kind is 'avg' or 'max', and the size a whole number from 1 on, or "
                "one for each direction."
            )


@dataclass(frozen=True)
class Token:
    """One vector per sequence: the first token's, the mean or the last one's, padding left out."""

    which: Literal["cls", "mean", "last"] = "mean"

    def __post_init__(self) -> None:
        if self.which not in ("cls", "mean", "last"):
            raise ProbeError(f"{self!r} cannot be: the token is 'cls', 'mean' or 'last'.")


@dataclass(frozen=True)
class Subset:
    """`k` of the layer's numbers, always the same ones for a seed and layer name."""

    k: int = 1000

    def __post_init__(self) -> None:
        _require_count(self, self.k)


@dataclass(frozen=True)
class Project:
    """`k` random combinations with signs +1 and -1 over sqrt(k), the same for a seed and layer name."""

    k: int = 1000

    def __post_init__(self) -> None:
        _require_count(self, self.k)


@dataclass(frozen=True)
class Positions:
    """One row per token or pixel instead of one per example, for labels (B, T) or (B, H, W)."""


@dataclass(frozen=True)
class Auto:
    """As many numbers as fit `limit`, for every layer of a model, so that their probes can be compared.

    A layer of at most `limit` numbers is taken whole. A larger map is averaged over the finest grid of its
    own proportions that fits, tokens (B, T, C) over their positions, because the next batch may have more
    or fewer of them; what is still too large, or has no known positions, is a random subset.
    """

    limit: int = 4096

    def __post_init__(self) -> None:
        _require_count(self, self.limit)


Reduction: TypeAlias = "Flatten | Pool | Token | Subset | Project | Positions | Auto"
Reduce: TypeAlias = "Reduction | Sequence[Reduction] | str"
_KINDS = (Flatten, Pool, Token, Subset, Project, Positions, Auto)


def chain_of(reduce: Reduce) -> tuple[Reduction, ...]:
    """A reduction, its text, or several of them, as several.

    Raises:
        ProbeError: for what is none.
    """
    if isinstance(reduce, str):
        return parse_reduction(reduce)
    given: tuple[Any, ...] = tuple(reduce) if isinstance(reduce, (tuple, list)) else (reduce,)
    if not given or not all(isinstance(spec, _KINDS) for spec in given):
        raise ProbeError(
            f"reduce={reduce!r} is not a reduction; use its text, such as 'auto', 'avg:2' or 'subset:1000', "
            "an object such as Pool('avg', 2), or these by layer."
        )
    return given


def parse_reduction(text: str) -> tuple[Reduction, ...]:
    """Read `"auto"`, `"auto:512"`, `"flatten"`, `"avg"`, `"max:4x6"`, `"cls"`, `"subset:1000"`, or a chain.

    Raises:
        ProbeError: for an unknown word, or a number that is not one.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(","))


def text_of(spec: Reduction) -> str:
    """The text that `parse_reduction` reads."""
    if isinstance(spec, Pool):
        sides = spec.size if isinstance(spec.size, tuple) else (spec.size,)
        return f"{spec.kind}:{'x'.join(map(str, sides))}"
    if isinstance(spec, Token):
        return spec.which
    number = getattr(spec, "k", None) or getattr(spec, "limit", None)
    return type(spec).__name__.lower() + (f":{number}" if number else "")


_NUMBERED: Mapping[str, Callable[..., Reduction]] = {
    "avg": partial(Pool, "avg"),
    "max": partial(Pool, "max"),
    "subset": Subset,
    "project": Project,
    "auto": Auto,
}
_PLAIN: Mapping[str, Reduction] = {
    "flatten": Flatten(),
    "positions": Positions(),
    "cls": Token("cls"),
    "mean": Token("mean"),
    "last": Token("last"),
}


def _parse_one(text: str) -> Reduction:
    word, colon, number = text.partition(":")
    if word in _PLAIN and not colon:
        return _PLAIN[word]
    if word not in _NUMBERED:
        raise ProbeError(
            f"unknown reduction {text!r}; use auto[:limit], flatten, avg[:grid], max[:grid], cls, mean, "
            "last, subset:k, project:k or positions, or several separated by commas."
        )
    if not colon:
        return _NUMBERED[word]()
    sides = number.split("x") if word in ("avg", "max") else [number]
    if not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise ProbeError(f"the reduction {text!r} needs a positive whole number after its colon.")
    counts = tuple(int(side) for side in sides)
    return _NUMBERED[word](counts if len(counts) > 1 else counts[0])


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _require_count(spec: object, number: object) -> None:
    if not _is_count(number):
        raise ProbeError(f"{spec!r} cannot be: it needs a whole number from 1 on.")
