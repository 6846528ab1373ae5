"""The contract of a reduction: from a layer's features to the few numbers per example that a probe reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

import torch

from thermoscope.errors import ProbeError

from ..layout import Features

__all__ = ["Reduction", "Step", "is_count", "require_count", "sized"]

Step: TypeAlias = Callable[[Features], Features]


@dataclass(frozen=True)
class Reduction:
    """Base class of reductions; `reduce=` takes an instance of any subclass, your own too.

    A subclass is a frozen dataclass, whose fields are its settings, and defines `bind`. Several in a row are
    a tuple; each is given what the one before it left.

    Attributes:
        forms: how its texts are written, for the package's own: a word, then `:k` (a whole number) or
            `:grid` (whole numbers with `x` between them), in brackets if it may be left out. Your own
            reductions have none: they are given as objects.
        needs_layout: whether it has no meaning where it is not known which dimensions of the layer are
            channels and which positions; such a layer is then refused by a sentence.
        by_position: whether it gives one row per position instead of one per example.
    """

    forms: ClassVar[tuple[str, ...]] = ()
    needs_layout: ClassVar[bool] = False
    by_position: ClassVar[bool] = False

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """The function by which this layer is reduced, batch after batch.

        Args:
            features: the layer's, of the first batch: their shape and layout decide. Where they are padded
                sequences (`valid` is not None), the padding is to be left out.
            name: of the layer, for errors; with `seed` it decides what is random.
            seed: of the probes.

        Returns:
            A function from `Features` to `Features` of as many examples, value (B, columns) or (B, C,
            *positions), channel 1. It may give a view: what comes last is copied, as float32.

        Raises:
            ProbeError: if the reduction does not suit the layer.
        """
        raise ProbeError(
            f"{type(self).__name__} does not say how it reduces layer {name!r}; define its method bind, or "
            "settled in terms of other reductions."
        )

    def settled(self, features: Features) -> tuple[Reduction, ...]:
        """What it comes to for a layer with these features: itself, unless it chooses among others."""
        return (self,)

    def __str__(self) -> str:
        """The text in tables and in the records of a store, which has to say all that decides."""
        values = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{type(self).__name__}({', '.join(values)})"

    @classmethod
    def from_text(cls, word: str, numbers: tuple[int, ...]) -> Reduction:
        """The reduction that is written as this word of `forms` and these numbers after its colon."""
        return cls(*numbers)


def sized(features: Features, total: int, name: str) -> torch.Tensor:
    """The features (B, total).

    Raises:
        ProbeError: if there are more or fewer of them than when they were bound.
    """
    value = features.value.flatten(1)
    if value.shape[1] != total:
        raise ProbeError(
            f"layer {name!r} gave {total} numbers per example and now gives {value.shape[1]}; keep the "
            "input size fixed or pool the layer (reduce='avg')."
        )
    return value


def is_count(number: object) -> bool:
    """Whether this is a whole number from 1 on."""
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def require_count(spec: Reduction, number: object) -> None:
    """Refuse a reduction whose number is not a whole one from 1 on."""
    if not is_count(number):
        raise ProbeError(f"{spec!r} cannot be: it needs a whole number from 1 on.")
