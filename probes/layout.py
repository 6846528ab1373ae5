"""Where the batch, the positions and the channels of a layer's features are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .errors import ProbeError
from .selection import INPUT

__all__ = ["Features", "Layout", "infer_layout"]

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class Features:
    """One layer's features for one batch, before they are reduced.

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
    """How a layer arranges its values: `batch` and `channel` are dimensions."""

    batch: int
    channel: int

    def features(self, value: torch.Tensor | PackedSequence, mask: torch.Tensor | None) -> Features:
        """Interpret what a hook saw. `mask` is (B, T), true where a token is data."""
        if isinstance(value, PackedSequence):
            padded, lengths = pad_packed_sequence(value, batch_first=True)
            steps = torch.arange(padded.shape[1], device=padded.device)
            return Features(padded, 2, steps < lengths.to(padded.device)[:, None], "BTC")
        if self.batch:
            value = value.transpose(0, self.batch)
        fits = mask is not None and self.channel == 2 and mask.shape == value.shape[:2]
        return Features(value, self.channel, mask if fits else None, _letters(value.ndim, self.channel))


def infer_layout(value: torch.Tensor | PackedSequence, module: nn.Module, name: str) -> Layout:
    """Read the layout off a value and the module it came from.

    Channels are the second dimension or the last one, see `_channel`. The batch comes first, or second
    where a 3-D value's module holds a recurrent or attention part with `batch_first=False`.

    Raises:
        ProbeError: for a value without a batch dimension.
    """
    if isinstance(value, PackedSequence):
        return Layout(0, 2)
    if value.ndim < 2:
        raise ProbeError(
            f"layer {name!r} gives one number per example; a probe needs at least two dimensions."
        )
    if value.ndim == 3 and any(getattr(part, "batch_first", True) is False for part in module.modules()):
        return Layout(1, 2)
    # A whole model's parts say nothing about what it is fed with.
    return Layout(0, _channel(tuple(value.shape), nn.Identity() if name == INPUT else module))


def _channel(shape: tuple[int, ...], module: nn.Module) -> int:
    """1 for (B, C, L) and (B, C, H, W), the last dimension for (B, T, C) and (B, H, W, C).

    There are two kinds of evidence: the channels are as many as some norm or bias of the module has
    numbers, and images are mostly square. Where they fail or contradict each other, a convolution in the
    module means channels first, and other weights, as those of attention, channels last.
    """
    last = len(shape) - 1
    if last == 1 or isinstance(module, _CHANNELS_FIRST):
        return 1
    if isinstance(module, _CHANNELS_LAST):
        return last
    lengths = {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 1}
    evidence = set(_one_of(1, shape[1] in lengths, last, shape[last] in lengths))
    if last > 2:
        evidence |= set(_one_of(1, shape[-2] == shape[-1], last, shape[-3] == shape[-2]))
    if len(evidence) == 1:
        return evidence.pop()
    convolutions = (part for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd))
    if any(part.weight.ndim == len(shape) for part in convolutions):
        return 1
    return last if lengths or last == 2 else 1


def _one_of(first: int, is_first: bool, last: int, is_last: bool) -> tuple[int, ...]:
    """What speaks for one and not for the other."""
    return () if is_first == is_last else (first if is_first else last,)


def _letters(rank: int, channel: int) -> str:
    positions = {2: "", 3: "L" if channel == 1 else "T", 4: "HW", 5: "DHW"}.get(rank, "")
    return f"BC{positions}" if channel == 1 else f"B{positions}C"
