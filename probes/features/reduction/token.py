"""One vector per sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from thermoscope.errors import ProbeError

from ..layout import Features
from .contract import Reduction, Step

__all__ = ["Token", "token"]


@dataclass(frozen=True)
class Token(Reduction):
    """One vector per sequence: the first token's, the mean or the last one's, padding left out."""

    which: Literal["cls", "mean", "last"] = "mean"
    forms: ClassVar[tuple[str, ...]] = ("cls", "mean", "last")
    needs_layout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.which not in ("cls", "mean", "last"):
            raise ProbeError(f"{self!r} cannot be: the token is 'cls', 'mean' or 'last'.")

    def bind(self, features: Features, *, name: str, seed: int) -> Step:
        """Refuse what is not a sequence."""
        if len(features.positions) != 1:
            raise ProbeError(f"layer {name!r} is not a sequence, so it has no {self.which!r} token.")
        return lambda f: Features(token(f, self.which), 1)

    def __str__(self) -> str:
        return self.which

    @classmethod
    def from_text(cls, word: str, numbers: tuple[int, ...]) -> Reduction:
        """The word is the token."""
        return cls(word)  # type: ignore[arg-type]  # one of `forms`


def token(features: Features, which: Literal["cls", "mean", "last"]) -> torch.Tensor:
    """One vector of each sequence (B, C)."""
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
