"""`layers="auto"` draws the blocks that a person would."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from probes import ProbeSet
from probes.automatic import automatic_layers


def numbered(prefix: str, *counts: int) -> list[str]:
    """`layer1.0`, `layer1.1`, `layer2.0`, ..."""
    return [f"{prefix}{i}.{j}" for i, count in enumerate(counts, start=1) for j in range(count)]


CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
BLOCKS = {
    "resnet18": ["conv1", *numbered("layer", 2, 2, 2, 2), "fc"],
    "resnet50": ["conv1", *numbered("layer", 3, 4, 6, 3), "fc"],
    "vgg16": [*(f"features.{i}" for i in CONVOLUTIONS), *(f"classifier.{i}" for i in (0, 3, 6))],
    "vit_b_16": ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads.head"],
    "mobilenet_v3_small": [*(f"features.{i}" for i in range(13)), "classifier.0", "classifier.3"],
    "densenet121": [
        *("features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2"),
        *("features.transition2", "features.denseblock3", "features.transition3", "features.denseblock4"),
        "classifier",
    ],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_known_architectures(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert automatic_layers(model) == ["input", *BLOCKS[name]]


def test_more_blocks_than_fit_are_drawn_as_stages() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet200")
    assert automatic_layers(model) == ["input", "conv1", "layer1", "layer2", "layer3", "layer4", "fc"]


class Loops(nn.Module):
    """A user's own: blocks in a list, a part that never runs, windows as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.windows = nn.Linear(3, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x + self.windows(x.view(-1, 3)).view(-1, 2, 6).mean(1))


def test_what_cannot_be_probed_is_left_out_with_a_reason() -> None:
    model = Loops()
    with ProbeSet(model, num_classes=2) as probes:
        model(torch.randn(5, 6))
        probes.step(torch.tensor([0, 1, 0, 1, 1]))
        assert probes.layers == ("input", "blocks.0", "blocks.1", "blocks.2", "head")
        assert set(probes.skipped) == {"windows"}
        assert "gives 10 rows for a batch of 5 examples" in probes.skipped["windows"]
