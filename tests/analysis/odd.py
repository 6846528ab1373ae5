"""Models and data that cannot be trained, or hardly, for the tests of what the command line answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from .small import data, model


class Answering(nn.Module):
    """A model whose forward returns something made from logits."""

    def __init__(self, make: Any):
        super().__init__()
        self.inner, self._make = model(3), make

    def forward(self, x: torch.Tensor) -> Any:
        return self._make(self.inner(x))


def dict_model() -> nn.Module:
    return Answering(lambda logits: {"logits": logits, "features": logits})


def dict_without_logits() -> nn.Module:
    return Answering(lambda logits: {"out": logits})


def none_model() -> nn.Module:
    return Answering(lambda logits: None)


def empty_tuple_model() -> nn.Module:
    return Answering(lambda logits: ())


def text_model() -> nn.Module:
    return Answering(lambda logits: "cat")


def tuple_model() -> nn.Module:
    return Answering(lambda logits: (logits, logits.detach()))


def detached_model() -> nn.Module:
    return Answering(lambda logits: logits.detach())


def scalar_model() -> nn.Module:
    return Answering(lambda logits: logits.sum())


def too_few_outputs() -> nn.Module:
    return Answering(lambda logits: logits[:, :1])


def maps_model() -> nn.Module:
    return Answering(lambda logits: logits[:, :, None, None].expand(-1, -1, 2, 2))


def failing_model() -> nn.Module:
    def fail(logits: torch.Tensor) -> None:
        raise KeyError("somewhere")

    return Answering(fail)


def failing_late() -> nn.Module:
    """Its forward fails in training mode alone, which is not tried beforehand."""

    class Late(Answering):
        def forward(self, x: torch.Tensor) -> Any:
            if self.training:
                raise ZeroDivisionError("in my own forward")
            return super().forward(x)

    return Late(lambda logits: logits)


def frozen_model() -> nn.Module:
    return model(3).requires_grad_(False)


def without_parameters() -> nn.Module:
    return nn.Flatten()


def no_module() -> str:
    return "a model"


def failing_builder() -> nn.Module:
    raise ValueError("no configuration found\nlook elsewhere")


def demanding_builder(depth: int) -> nn.Module:
    return model(depth)


_THIRD = TensorDataset(torch.zeros(8, 1, 6, 6), torch.zeros(8, dtype=torch.long))


def empty_training() -> Any:
    first, second, third = data()
    return TensorDataset(first.tensors[0][:0], first.tensors[1][:0]), second, third


class Listed(Dataset[Any]):
    """A list as a data set."""

    def __init__(self, items: list[Any]):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Any:
        return self._items[i]


def _splits(make: Any) -> Any:
    from analysis import DataSplits

    return DataSplits(*(Listed([make(i, x, y) for i, (x, y) in enumerate(part)]) for part in data()), 3)


def ragged() -> Any:
    return _splits(lambda i, x, y: (x[:, : 6 - i % 2], int(y)))


def text_inputs() -> Any:
    return _splits(lambda i, x, y: ("a picture", int(y)))


def float_labels() -> Any:
    return _splits(lambda i, x, y: (x, float(y) + 0.5))


def label_too_large() -> Any:
    return _splits(lambda i, x, y: (x, 7))


class Augmented(Dataset[Any]):
    """Noise from all three streams, as people's augmentations draw it."""

    def __init__(self, split: TensorDataset):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = self._split[i]
        return x + torch.rand(1) + random.random() + np.random.rand(), int(y)


def augmented() -> Any:
    from analysis import DataSplits

    first, second, third = data()
    return DataSplits(Augmented(first), second, third, 3)


def random_data() -> Any:
    """Data made at random: the same ones for the same seed."""
    from analysis import DataSplits

    x = torch.from_numpy(np.random.randn(60, 1, 6, 6)).float() + random.random() + torch.randn(1)
    y = torch.arange(60) % 3
    return DataSplits(*(TensorDataset(x[i::3], y[i::3]) for i in range(3)), 3)
