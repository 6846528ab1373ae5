"""A small run for the tests: settings, and models and data of a user's own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from analysis import DataSplits
from analysis.jobs.train import TrainSettings

SETTINGS = TrainSettings(
    model="tests.analysis.small:model",
    data="tests.analysis.small:data",
    probe=("input", "*"),
    epochs=3,
    fit_epochs=2,
    batch_size=16,
    evaluate="every:5",
    snapshots="log:3",
)


def model(num_classes: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3),
            norm=nn.BatchNorm2d(4),
            relu=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.3),
            flat=nn.Flatten(),
            fc=nn.Linear(64, num_classes),
        )
    )


def small_net(num_classes: int) -> nn.Module:
    """For 8 x 8 images; its Hessian can be written down."""
    layers = [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, num_classes)]
    return nn.Sequential(*layers)


def data() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, 6, 6, generator=g)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()
    parts = [slice(0, 120), slice(120, 160), slice(160, 200)]
    first, second, third = (TensorDataset(x[part], y[part]) for part in parts)
    return first, second, third


class TwoLabels(Dataset[Any]):
    """Examples with two label sets."""

    def __init__(self, split: TensorDataset):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, int]]:
        x, y = self._split[i]
        return x, {"task": int(y), "bright": int(x[0, 0, 0] > 0)}


def data_with_two_labels() -> DataSplits:
    first, second, third = (TwoLabels(part) for part in data())
    return DataSplits(first, second, third, 3)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x) + x)


def residual_net(num_classes: int) -> nn.Module:
    """With a ResNet's names."""
    stages = {f"layer{i}": nn.Sequential(_Block()) for i in (1, 2)}
    parts = OrderedDict(
        conv1=nn.Conv2d(1, 4, 3, stride=2),
        **stages,
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(4, num_classes),
    )
    return nn.Sequential(parts)
