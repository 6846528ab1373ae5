"""Where the batch, the positions and the channels of a layer's features are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from thermoscope.errors import ProbeError

from .patterns import glob_matches

__all__ = ["Features", "GivenLayouts", "Layout"]

LayoutText: TypeAlias = "str | Mapping[str, str]"


@dataclass(frozen=True)
class Features:
    """One layer's features for one batch, as the layer gave them or a reduction left them.

    Attributes:
        value: shape (B, C), or B, C and positions in any order the layer uses with B first.
        channel: the dimension of `value` that holds channels; the others after the first are positions. None
            where it is not known which is which.
        valid: bool, shape (B, T), for sequences with padding: which positions hold data; else None.
        letters: the layer's own order of dimensions, such as `"BCHW"`.
    """

    value: torch.Tensor
    channel: int | None
    valid: torch.Tensor | None = None
    letters: str = ""

    def __str__(self) -> str:
        """What is where, for one example: `"BCHW 64x56x56"`."""
        return f"{self.letters} {'x'.join(map(str, self.value.shape[1:]))}".lstrip()

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the position dimensions: (), (T,), (H, W), ...; () if they are not known."""
        if self.channel is None:
            return ()
        return tuple(n for i, n in enumerate(self.value.shape) if i not in (0, self.channel))

    @property
    def channels(self) -> int:
        """How many there are; all numbers if it is not known what is a channel."""
        return self.numbers if self.channel is None else self.value.shape[self.channel]

    @property
    def numbers(self) -> int:
        """How many there are of each example."""
        return math.prod(self.value.shape[1:])

    @property
    def are_tokens(self) -> bool:
        """Whether these are sequences whose length may differ from batch to batch: (B, T, C), or padded."""
        last = self.value.ndim - 1
        return len(self.positions) == 1 and (self.channel == last or self.valid is not None)

    def channels_first(self) -> torch.Tensor:
        """A view (B, C, *positions)."""
        assert self.channel is not None
        return self.value.movedim(self.channel, 1)

    def channels_last(self) -> torch.Tensor:
        """A view (B, *positions, C)."""
        assert self.channel is not None
        return self.value.movedim(self.channel, -1)


@dataclass(frozen=True)
class Layout:
    """How a layer arranges its values.

    Attributes:
        letters: one per dimension: B the examples of a batch, C channels (several are read as one),
            `?` what is unknown, and any other letter positions.
    """

    letters: str

    def features(
        self, value: torch.Tensor | PackedSequence, mask: torch.Tensor | None, name: str
    ) -> Features:
        """Interpret what a hook saw at layer `name`. `mask` is (B, T), true where a token is data.

        Raises:
            ProbeError: for a value with other dimensions, or without any for examples.
        """
        if isinstance(value, PackedSequence):
            padded, lengths = pad_packed_sequence(value, batch_first=True)
            steps = torch.arange(padded.shape[1], device=padded.device)
            return Layout("BTC").features(padded, steps < lengths.to(padded.device)[:, None], name)
        if value.ndim != len(self.letters):
            raise ProbeError(
                f"layer {name!r} has {value.ndim} dimensions, {tuple(value.shape)}, and its layout is "
                f"{self.letters!r}; keep the form of the input fixed, or give the layout that it has."
            )
        if "B" not in self.letters:
            raise ProbeError(
                f"nothing in the forward shows a dimension of layer {name!r}, {tuple(value.shape)}, that "
                "holds the examples of the batch; leave it out, or say it with layout='TBC' or the like."
            )
        batch = self.letters.index("B")
        rest = self.letters.replace("B", "")
        if batch:
            value = value.movedim(batch, 0)
        if "?" in rest or "C" not in rest:
            return Features(value, None, None, self.letters)
        channels = [i for i, letter in enumerate(rest, start=1) if letter == "C"]
        first, count = channels[0], len(channels)
        if count > 1:
            value = value.movedim(channels, list(range(first, first + count)))
            value = value.flatten(first, first + count - 1)
        places = [n for i, n in enumerate(value.shape) if i not in (0, first)]
        is_of_places = mask is not None and len(places) == 1 and mask.shape == (len(value), *places)
        return Features(value, first, mask if is_of_places else None, self.letters)


class GivenLayouts:
    """What the user says of layouts: `"BCHW"` for all layers of four dimensions, or letters by glob of names.

    B is the examples of a batch, C channels, and T, L, H, W and D are positions.

    Raises:
        ProbeError: for letters that are no layout.
    """

    def __init__(self, given: LayoutText | None):
        self.by_glob = dict(given) if isinstance(given, Mapping) else {}
        self.general = None if isinstance(given, Mapping) else given
        for letters in self.by_glob.values() if isinstance(given, Mapping) else [given]:
            if letters is not None or isinstance(given, Mapping):
                _require_letters(letters)

    def of(self, name: str, rank: int) -> Layout | None:
        """What is said of a layer with so many dimensions."""
        for glob, letters in self.by_glob.items():
            if glob_matches(glob, name):
                return Layout(letters)
        is_meant = self.general is not None and len(self.general) == rank
        return Layout(self.general) if is_meant else None  # type: ignore[arg-type]


def _require_letters(letters: object) -> None:
    text = letters if isinstance(letters, str) else ""
    others = text.replace("B", "").replace("C", "")
    is_layout = text.count("B") == text.count("C") == 1 and len(set(others)) == len(others)
    if not is_layout or not set(others) <= set("TLHWD"):
        raise ProbeError(
            f"the layout {letters!r} is none: give one letter for each dimension, B once for the examples of "
            "a batch, C once for the channels, and T, L, H, W or D for positions, as in 'BCHW' or 'TBC'."
        )
