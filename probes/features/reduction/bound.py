"""Reductions bound to a layer: from its features to a new float32 matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from thermoscope.errors import ProbeError

from ..layout import Features
from .contract import Reduction, Step
from .parser import Reduce, chain_of

__all__ = ["BoundReduction", "bind"]

Memory: TypeAlias = Callable[[tuple[int, ...], torch.device], torch.Tensor]


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
    original = features
    waiting = list(chain_of(reduce))
    bound: list[Reduction] = []
    chosen_by: list[str] = []
    steps: list[Step] = []
    while waiting:
        spec = waiting.pop(0)
        settled = spec.settled(features)
        if settled != (spec,):
            waiting[:0] = settled
            chosen_by.append(f", {spec}")
            continue
        if spec.needs_layout and features.channel is None:
            raise ProbeError(
                f"nothing in the forward shows which dimensions of layer {name!r} ({features}) are channels "
                f"and which are positions, so {str(spec)!r} has no meaning; say it with layout='BCHW' or the "
                "like, or use 'flatten' or 'subset:k'."
            )
        step = spec.bind(features, name=name, seed=seed)
        features = _checked(spec, features, step(features), name)
        bound.append(spec)
        steps.append(step)
    by_position = [spec for spec in bound if spec.by_position]
    if by_position and not bound[-1].by_position:
        raise ProbeError(
            f"the reduction {str(by_position[0])!r} must come last: what it gives is one row per position."
        )
    positions = features.positions if by_position else ()
    size = features.value.shape[features.channel or 0] if by_position else features.numbers
    text = ",".join(map(str, bound))
    return BoundReduction(text, f"{text} of {original}{''.join(chosen_by)}", size, positions, tuple(steps))


def _checked(spec: Reduction, given: Features, made: object, name: str) -> Features:
    """What a reduction made of a layer's features, refused if probes cannot read it."""
    if not isinstance(made, Features) or len(made.value) != len(given.value) or made.value.ndim < 2:
        what = tuple(made.value.shape) if isinstance(made, Features) else type(made).__name__
        raise ProbeError(
            f"the reduction {str(spec)!r} made {what} of layer {name!r}; it has to return Features with one "
            f"row for each of the {len(given.value)} examples."
        )
    return made
