"""Reductions bound to a layer: from its features to a new float32 matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F

from thermoscope.errors import ProbeError

from ..streams import random_signs, random_subset
from .layout import Features
from .reduction import (
    Auto,
    Flatten,
    Pool,
    Positions,
    Project,
    Reduce,
    Reduction,
    Subset,
    Token,
    chain_of,
    text_of,
)

__all__ = ["BoundReduction", "bind"]

Step: TypeAlias = Callable[[Features], Features]
Memory: TypeAlias = Callable[[tuple[int, ...], torch.device], torch.Tensor]
_MAX_PROJECTION = 2**28  # entries of a random matrix: 1 GiB
_POOLS: dict[str, tuple[Callable[..., torch.Tensor], ...]] = {
    "avg": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "max": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}


def fresh(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Memory of its own for float32 features."""
    return torch.empty(shape, dtype=torch.float32, device=device)


@dataclass(frozen=True)
class BoundReduction:
    """A reduction settled for one layer.

    Attributes:
        text: what was chosen, as in `"avg:1"`.
        described: the same with what it was chosen for: `"avg:8 of BCHW 64x56x56, auto:4096"`.
        size: numbers per row.
        positions: sizes of the position dimensions if rows are positions, else ().
    """

    text: str
    described: str
    size: int
    positions: tuple[int, ...]
    steps: tuple[Step, ...]

    def __call__(
        self, features: Features, memory: Memory = fresh
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A float32 copy (B, size), or (B, *positions, size), in this memory; and which positions are data.

        It is a copy in any case: the model may change its own tensor in place after the hook.
        """
        for step in self.steps:
            features = step(features)
        value = features.channels_last() if self.positions else features.value
        shape = tuple(value.shape) if self.positions else (len(value), features.numbers)
        copy = memory(shape, value.device)
        copy.view(value.shape).copy_(value)
        return copy, features.valid


def bind(reduce: Reduce, features: Features, *, seed: int, name: str) -> BoundReduction:
    """Settle a reduction for the layer that gave `features`.

    Raises:
        ProbeError: if the reduction does not suit the layer's shape.
    """
    chain, original = chain_of(reduce), features
    steps: list[Step] = []
    texts: list[str] = []
    for spec in chain:
        for settled in _settle_auto(spec, features) if isinstance(spec, Auto) else (spec,):
            step = _step(settled, features, seed, name)
            steps.append(step)
            texts.append(text_of(settled))
            features = step(features)
    by_position = any(isinstance(spec, Positions) for spec in chain)
    if by_position and not isinstance(chain[-1], Positions):
        raise ProbeError("the reduction 'positions' must come last: what it gives is one row per position.")
    positions = features.positions if by_position else ()
    size = features.value.shape[features.channel or 0] if by_position else features.numbers
    text = ",".join(texts)
    autos = [f", {text_of(spec)}" for spec in chain if isinstance(spec, Auto)]
    return BoundReduction(text, f"{text} of {original}{''.join(autos)}", size, positions, tuple(steps))


def _settle_auto(spec: Auto, features: Features) -> tuple[Reduction, ...]:
    """What fits the limit; see `Auto`."""
    if features.are_tokens:
        summary: tuple[Reduction, ...] = (Token("mean"),)
    elif features.numbers <= spec.limit:
        return (Flatten(),)
    elif not 1 <= len(features.positions) <= 3:
        return (Subset(spec.limit),)
    else:
        grid = _finest_grid(features.positions, spec.limit // features.channels)
        summary = (Pool("avg", grid[0] if len(set(grid)) == 1 else grid),)
    return (*summary, Subset(spec.limit)) if features.channels > spec.limit else summary


def _finest_grid(positions: tuple[int, ...], cells: int) -> tuple[int, ...]:
    """The finest grid of a map's own proportions that has at most so many cells."""
    grid, longest = positions, max(positions)
    while math.prod(grid) > max(cells, 1):
        longest -= 1
        grid = tuple(max(1, round(n * longest / max(positions))) for n in positions)
    return grid


def _step(spec: Reduction, features: Features, seed: int, name: str) -> Step:
    total, positions = features.numbers, features.positions
    if isinstance(spec, (Pool, Token, Positions)) and features.channel is None:
        raise ProbeError(
            f"nothing in the forward shows which dimensions of layer {name!r} ({features}) are channels and "
            f"which are positions, so {text_of(spec)!r} has no meaning; say it with layout='BCHW' or the "
            "like, or use 'flatten' or 'subset:k'."
        )
    if isinstance(spec, Pool):
        _require_grid(spec, features, name)
        return lambda f: _pool(f, spec)
    if isinstance(spec, Token):
        if len(positions) != 1:
            raise ProbeError(f"layer {name!r} is not a sequence, so it has no {spec.which!r} token.")
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


def _require_grid(spec: Pool, features: Features, name: str) -> None:
    """Refuse a grid that the layer's positions do not have."""
    positions = features.positions
    if not positions:
        raise ProbeError(f"layer {name!r} has no positions to pool over; use 'flatten' or 'subset:k'.")
    sides = _sides(spec, len(positions))
    if spec.size == 1:
        return
    text = text_of(spec)
    if len(sides) != len(positions) or len(positions) > 3:
        raise ProbeError(
            f"layer {name!r} has positions in {len(positions)} direction{'s'[: len(positions) - 1]}, so it "
            f"cannot be pooled to the grid of {text!r}; use {spec.kind!r}, or one number of cells for each."
        )
    if any(side > n for side, n in zip(sides, positions, strict=True)):
        raise ProbeError(
            f"layer {name!r} has {'x'.join(map(str, positions))} positions, fewer than the grid "
            f"{'x'.join(map(str, sides))} asked for."
        )
    if features.valid is not None:
        raise ProbeError(
            f"layer {name!r} has padding, which the cells of {text!r} would mix with data; use {spec.kind!r}."
        )


def _sides(spec: Pool, directions: int) -> tuple[int, ...]:
    return spec.size if isinstance(spec.size, tuple) else (spec.size,) * directions


def _pool(features: Features, spec: Pool) -> Features:
    if spec.size == 1 and features.valid is not None:
        return Features(_token(features, "mean") if spec.kind == "avg" else _valid_maximum(features), 1)
    if spec.size == 1:
        dims = tuple(i for i in range(1, features.value.ndim) if i != features.channel)
        if spec.kind == "max":
            return Features(features.value.amax(dims), 1)
        return Features(features.value.mean(dims, dtype=torch.float32), 1)
    directions = len(features.positions)
    pool = _POOLS[spec.kind][directions - 1]
    pooled = pool(features.channels_first().float(), _sides(spec, directions))
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
