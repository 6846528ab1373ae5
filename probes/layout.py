"""Where the batch, the positions and the channels of a layer's features are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .errors import ProbeError

__all__ = ["Features", "Layout", "infer_layout"]

_CHANNELS_FIRST_1D = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
)


@dataclass(frozen=True)
class Features:
    """One layer's features for one batch, before they are reduced.

    Attributes:
        value: shape (B, C), or B, C and positions in any order the layer uses with B first.
        channel: the dimension of `value` that holds channels; the others after the first are positions.
        valid: bool, shape (B, T), for sequences with padding: which positions hold data; else None.
    """

    value: torch.Tensor
    channel: int
    valid: torch.Tensor | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the position dimensions: (), (T,), (H, W), ..."""
        shape = self.value.shape
        return tuple(n for i, n in enumerate(shape) if i not in (0, self.channel))

    def channels_first(self) -> torch.Tensor:
        """A view (B, C, *positions)."""
        return self.value.movedim(self.channel, 1)

    def channels_last(self) -> torch.Tensor:
        """A view (B, *positions, C)."""
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
            return Features(padded, 2, steps < lengths.to(padded.device)[:, None])
        if self.batch:
            value = value.transpose(0, self.batch)
        fits = mask is not None and self.channel == 2 and mask.shape == value.shape[:2]
        return Features(value, self.channel, mask if fits else None)


def infer_layout(value: torch.Tensor | PackedSequence, module: nn.Module, name: str) -> Layout:
    """Read the layout off a value and the module it came from.

    A 3-D value is a sequence (B, T, C), or (T, B, C) where the module holds a recurrent or attention part
    with `batch_first=False`; 1-D convolution, pooling and BatchNorm give (B, C, L). A 4-D value is
    (B, C, H, W) or (B, H, W, C), see `_map_channel`. Others have their channels second.

    Raises:
        ProbeError: for a value without a batch dimension.
    """
    if isinstance(value, PackedSequence):
        return Layout(0, 2)
    if value.ndim < 2:
        raise ProbeError(
            f"layer {name!r} gives one number per example; a probe needs at least two dimensions."
        )
    if value.ndim == 3 and not isinstance(module, _CHANNELS_FIRST_1D):
        second = any(getattr(part, "batch_first", True) is False for part in module.modules())
        return Layout(1 if second else 0, 2)
    return Layout(0, _map_channel(tuple(value.shape), module) if value.ndim == 4 else 1)


def _map_channel(shape: tuple[int, ...], module: nn.Module) -> int:
    """1 for (B, C, H, W), 3 for (B, H, W, C).

    Evidence in this order: a dimension that a norm's or bias's length in the module names; the two equal
    dimensions, since images are mostly square; PyTorch's own convention.
    """
    lengths = {parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 1}
    first, last = shape[1] in lengths, shape[3] in lengths
    if first != last:
        return 1 if first else 3
    return 3 if shape[1] == shape[2] != shape[3] else 1
