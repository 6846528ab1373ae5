"""Reductions: from a layer's features to the few numbers per example that a probe reads.

A reduction is a value that can be written down (`Pool("avg", 2)`, in text `"avg:2"`); bound to a layer
it is a function from `Features` to a new float32 matrix. Several in a row are a tuple, or in text
`"avg:2,subset:1000"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F

from .errors import ProbeError
from .layout import Features
from .streams import random_signs, random_subset

__all__ = [
    "Auto",
    "BoundReduction",
    "Flatten",
    "Pool",
    "Positions",
    "Project",
    "Reduction",
    "Subset",
    "Token",
    "bind",
    "parse_reduction",
]

Step: TypeAlias = Callable[[Features], Features]
_MAX_PROJECTION = 2**28  # entries of a random matrix: 1 GiB


@dataclass(frozen=True)
class Flatten:
    """Every number of the layer."""


@dataclass(frozen=True)
class Pool:
    """Average or maximum per channel over a `size` x `size` grid (over all positions when 1)."""

    kind: Literal["avg", "max"] = "avg"
    size: int = 1


@dataclass(frozen=True)
class Token:
    """One vector per sequence: the first token's, the mean or the last one's, padding left out."""

    which: Literal["cls", "mean", "last"] = "mean"


@dataclass(frozen=True)
class Subset:
    """`k` of the layer's numbers, always the same ones for a seed and layer name."""

    k: int = 1000


@dataclass(frozen=True)
class Project:
    """`k` random combinations with signs +1 and -1 over sqrt(k), the same for a seed and layer name."""

    k: int = 1000


@dataclass(frozen=True)
class Positions:
    """One row per token or pixel instead of one per example, for labels (B, T) or (B, H, W)."""


@dataclass(frozen=True)
class Auto:
    """Whole if at most `limit` numbers; else pooled over positions; else a random subset of `limit`."""

    limit: int = 4096


Reduction: TypeAlias = "Flatten | Pool | Token | Subset | Project | Positions | Auto"


@dataclass(frozen=True)
class BoundReduction:
    """A reduction settled for one layer.

    Attributes:
        text: what was chosen, as in `"avg:1"`.
        size: numbers per row.
        positions: sizes of the position dimensions if rows are positions, else ().
    """

    text: str
    size: int
    positions: tuple[int, ...]
    steps: tuple[Step, ...]

    def __call__(
        self, features: Features, buffer: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A float32 copy (B, size), or (B, *positions, size); and which positions are data.

        The copy is made in `buffer` if that has its shape: a large tensor's memory costs more than copying.
        """
        original = features.value
        for step in self.steps:
            features = step(features)
        value = features.channels_last() if self.positions else features.value.flatten(1)
        value = value.to(torch.float32)
        # The model may change its own tensor in place after the hook.
        shares = value.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()
        if shares and buffer is not None and buffer.shape == value.shape and buffer.device == value.device:
            return buffer.copy_(value), features.valid
        return (value.clone() if shares else value), features.valid


def bind(
    reduction: Reduction | Sequence[Reduction] | str, features: Features, *, seed: int, name: str
) -> BoundReduction:
    """Settle a reduction for the layer that gave `features`.

    Raises:
        ProbeError: if the reduction does not suit the layer's shape.
    """
    chain = parse_reduction(reduction) if isinstance(reduction, str) else reduction
    chain = tuple(chain) if isinstance(chain, Sequence) else (chain,)
    steps: list[Step] = []
    texts: list[str] = []
    for spec in chain:
        for settled in _settle_auto(spec, features) if isinstance(spec, Auto) else (spec,):
            step = _step(settled, features, seed, name)
            steps.append(step)
            texts.append(_text(settled))
            features = step(features)
    by_position = any(isinstance(spec, Positions) for spec in chain)
    if by_position and not isinstance(chain[-1], Positions):
        raise ProbeError("the reduction 'positions' must come last: what it gives is one row per position.")
    positions = features.positions if by_position else ()
    size = features.value.shape[features.channel] if by_position else features.value[0].numel()
    return BoundReduction(",".join(texts), size, positions, tuple(steps))


def parse_reduction(text: str) -> tuple[Reduction, ...]:
    """Read `"auto"`, `"auto:512"`, `"flatten"`, `"avg"`, `"max:2"`, `"cls"`, `"subset:1000"`, ... or a chain.

    Raises:
        ProbeError: for an unknown word or a number that is none.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(","))


def _parse_one(text: str) -> Reduction:
    word, colon, number = text.partition(":")
    if colon and not (number.isdigit() and int(number) > 0):
        raise ProbeError(f"the reduction {text!r} needs a positive whole number after its colon.")
    numbered: dict[str, Callable[..., Reduction]] = {
        "avg": partial(Pool, "avg"),
        "max": partial(Pool, "max"),
        "subset": Subset,
        "project": Project,
        "auto": Auto,
    }
    plain: dict[str, Reduction] = {
        "flatten": Flatten(),
        "positions": Positions(),
        "cls": Token("cls"),
        "mean": Token("mean"),
        "last": Token("last"),
    }
    if word in numbered:
        return numbered[word](int(number)) if colon else numbered[word]()
    if word in plain and not colon:
        return plain[word]
    raise ProbeError(
        f"unknown reduction {text!r}; use auto[:limit], flatten, avg[:grid], max[:grid], cls, mean, last, "
        "subset:k, project:k or positions, or several separated by commas."
    )


def _text(spec: Reduction) -> str:
    if isinstance(spec, Pool):
        return f"{spec.kind}:{spec.size}"
    if isinstance(spec, Token):
        return spec.which
    number = getattr(spec, "k", None)
    return type(spec).__name__.lower() + (f":{number}" if number else "")


def _settle_auto(spec: Auto, features: Features) -> tuple[Reduction, ...]:
    channels, positions = features.value.shape[features.channel], features.positions
    if len(positions) == 1:  # the length of a sequence may change between batches
        summary: tuple[Reduction, ...] = (Token("mean"),)
    elif positions and features.value[0].numel() > spec.limit:
        summary = (Pool("avg"),)
    else:
        summary, channels = (), features.value[0].numel()
    if channels > spec.limit:
        return *summary, Subset(spec.limit)
    return summary or (Flatten(),)


def _step(spec: Reduction, features: Features, seed: int, name: str) -> Step:
    total, positions = features.value[0].numel(), features.positions
    if isinstance(spec, Pool):
        if not positions:
            raise ProbeError(f"layer {name!r} has no positions to pool over; use 'flatten' or 'subset:k'.")
        if spec.size > 1 and len(positions) != 2:
            raise ProbeError(
                f"layer {name!r} is no image, so it cannot be pooled to a grid; use {spec.kind!r}."
            )
        if spec.size > min(positions):
            raise ProbeError(
                f"layer {name!r} has {'x'.join(map(str, positions))} positions, fewer than the grid "
                f"{spec.size}x{spec.size} asked for."
            )
        return lambda f: _pool(f, spec)
    if isinstance(spec, Token):
        if len(positions) != 1:
            raise ProbeError(f"layer {name!r} is no sequence (B, T, C), so it has no {spec.which!r} token.")
        return lambda f: Features(_token(f, spec.which), 1)
    if isinstance(spec, Subset):
        if spec.k >= total:
            return _flatten
        index = random_subset(total, spec.k, seed=seed, name=name).to(features.value.device)
        return lambda f: Features(_select(_sized(f, total, name), index), 1)
    if isinstance(spec, Project):
        if total * spec.k > _MAX_PROJECTION:
            raise ProbeError(
                f"projecting the {total:,} numbers of layer {name!r} to {spec.k:,} needs a matrix of "
                f"{total * spec.k * 4 / 2**30:.1f} GiB; pool first, as in 'avg:2,project:{spec.k}'."
            )
        matrix = random_signs(total, spec.k, seed=seed, name=name).div_(math.sqrt(spec.k))
        matrix = matrix.to(features.value.device)
        return lambda f: Features(_sized(f, total, name).float() @ matrix.to(f.value.device), 1)
    if isinstance(spec, Positions):
        if not positions:
            raise ProbeError(f"layer {name!r} has no positions, so it cannot have a label for each of them.")
        return lambda f: f
    return _flatten


def _flatten(features: Features) -> Features:
    return Features(features.value.flatten(1), 1)


def _sized(features: Features, total: int, name: str) -> torch.Tensor:
    """The features (B, total), refused if there are more or fewer of them than when they were bound."""
    value = features.value.flatten(1)
    if value.shape[1] != total:
        raise ProbeError(
            f"layer {name!r} gave {total} numbers per example and now gives {value.shape[1]}; keep the "
            "input size fixed or pool the layer (reduce='avg')."
        )
    return value


def _select(value: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return value.index_select(1, index.to(value.device))


def _pool(features: Features, spec: Pool) -> Features:
    if spec.size == 1 and features.valid is not None:
        return Features(_token(features, "mean") if spec.kind == "avg" else _valid_maximum(features), 1)
    if spec.size == 1:
        dims = tuple(i for i in range(1, features.value.ndim) if i != features.channel)
        if spec.kind == "max":
            return Features(features.value.amax(dims), 1)
        return Features(features.value.mean(dims, dtype=torch.float32), 1)
    pool = F.adaptive_avg_pool2d if spec.kind == "avg" else F.adaptive_max_pool2d
    pooled: torch.Tensor = pool(features.channels_first().float(), spec.size)
    return Features(pooled, 1)


def _valid_maximum(features: Features) -> torch.Tensor:
    assert features.valid is not None
    value = features.channels_last()
    return value.masked_fill(~features.valid[..., None], float("-inf")).amax(1)


def _token(features: Features, which: str) -> torch.Tensor:
    value, valid = features.channels_last(), features.valid
    if which == "mean":
        if valid is None:
            return value.mean(1, dtype=torch.float32)
        weights = valid.to(torch.float32)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return torch.einsum("bt,btc->bc", weights, value.masked_fill(~valid[..., None], 0).float())
    if valid is None:
        return value[:, 0 if which == "cls" else -1]
    steps = torch.arange(valid.shape[1], device=valid.device)
    first = valid.int().argmax(1)  # the earliest of equal ones
    last = torch.where(valid, steps, 0).amax(1)
    return value[torch.arange(len(value), device=value.device), first if which == "cls" else last]
