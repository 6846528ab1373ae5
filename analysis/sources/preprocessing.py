"""From an image to what a model takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from thermoscope.errors import AnalysisError

__all__ = ["Preprocessing", "own_preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """How images become float32 tensors (C, H, W); by default the image in 0..1 and nothing else.

    Attributes:
        size: pixels of a square centre crop; None keeps the image as it is.
        resize: pixels that the short side has before the crop; by default `size`.
        rgb: give grey images three channels.
        mean: per channel, of values in 0..1, taken off.
        std: per channel, by which the rest is divided.
        interpolation: how images are resized.
    """

    size: int | None = None
    resize: int | None = None
    rgb: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise AnalysisError(
                f"there are {len(self.mean)} means and {len(self.std)} standard deviations; give one of each "
                "per channel."
            )
        if 0 in self.std:
            raise AnalysisError("a standard deviation is 0; images are divided by it.")
        if not all(math.isfinite(m) for m in self.mean) or not all(0 < s < math.inf for s in self.std):
            raise AnalysisError(
                f"a mean of {self.mean} and a standard deviation of {self.std} scale no image; give finite "
                "means and positive deviations."
            )
        if self.resize is not None and self.resize < 1:
            raise AnalysisError(f"images cannot be resized to {self.resize} pixels.")
        if self.size is not None and not 1 <= self.size <= (self.resize or self.size):
            raise AnalysisError(
                f"images cannot be resized to {self.resize} and cut to {self.size} pixels; resize to at "
                "least the size of the crop."
            )

    def transform(self) -> Callable[[Any], torch.Tensor]:
        """The function from a PIL image or an array (H, W) or (H, W, C) to a tensor."""
        from torchvision.transforms import InterpolationMode, v2

        steps: list[Any] = [v2.ToImage()]
        if self.rgb:
            steps += [v2.RGB(), self._require_three]
        if self.resize or self.size:
            mode = InterpolationMode(self.interpolation)
            steps.append(v2.Resize(self.resize or self.size, mode, antialias=True))
        if self.size:
            steps.append(v2.CenterCrop(self.size))
        steps.append(v2.ToDtype(torch.float32, scale=True))
        if self.mean:
            steps += [self._require_channels, v2.Normalize(self.mean, self.std)]
        transform: Callable[[Any], torch.Tensor] = v2.Compose([*steps, v2.ToPureTensor()])
        return transform

    def _require_three(self, image: torch.Tensor) -> torch.Tensor:
        """An image of three channels."""
        channels = image.shape[-3]
        if channels != 3:
            raise AnalysisError(f"an image of {channels} channels cannot be made RGB; give grey or RGB ones.")
        return image

    def _require_channels(self, image: torch.Tensor) -> torch.Tensor:
        """An image with as many channels as there are means, or any where there is one for all."""
        if len(self.mean) not in (1, len(image)):
            raise AnalysisError(
                f"there are {len(self.mean)} means and standard deviations for images of {len(image)} "
                "channels; give one of each per channel, or make grey images RGB."
            )
        return image


def own_preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """What the published weights of `torchvision:NAME` or `timm:NAME` were trained with.

    A model of the user's own may have it as an attribute `preprocessing`. Without one, and without published
    weights, it is the plain `Preprocessing()`.
    """
    own = getattr(model, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    source, _, rest = name.partition(":")
    if source == "timm":
        from timm.data.config import resolve_model_data_config

        config = resolve_model_data_config(model)
        size = int(config["input_size"][-1])
        return Preprocessing(
            size=size,
            resize=int(size / config["crop_pct"]),
            rgb=config["input_size"][0] == 3,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation="bicubic" if config["interpolation"] == "bicubic" else "bilinear",
        )
    if source == "torchvision":
        from torchvision.models import get_model_weights

        published = list(get_model_weights(rest))
        if published:
            preset = published[-1].transforms()
            return Preprocessing(
                size=preset.crop_size[0],
                resize=preset.resize_size[0],
                rgb=True,
                mean=tuple(preset.mean),
                std=tuple(preset.std),
                interpolation="bicubic" if preset.interpolation.value == "bicubic" else "bilinear",
            )
    return Preprocessing()
