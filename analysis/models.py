"""Small models of the papers, for `--model analysis.models:NAME`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["digits_convnet", "lenet", "mnist_convnet", "small_lenet"]


def mnist_convnet(num_classes: int = 10) -> nn.Sequential:
    """The MNIST convnet of Alain & Bengio (2016), section 3.3: input (B, 1, 28, 28)."""
    return _convnet(channels=(32, 64), kernel=5, flat=64 * 7 * 7, hidden=512, num_classes=num_classes)


def digits_convnet(num_classes: int = 10) -> nn.Sequential:
    """The same shape for scikit-learn's digits: input (B, 1, 8, 8)."""
    return _convnet(channels=(16, 32), kernel=3, flat=32 * 2 * 2, hidden=64, num_classes=num_classes)


def lenet(num_classes: int = 10) -> nn.Sequential:
    """The LeNet of Alain, Le Roux & Manzagol, 3.3 million parameters: input (B, 1, 28, 28)."""
    return _convnet(channels=(32, 64), kernel=5, flat=64 * 7 * 7, hidden=1024, num_classes=num_classes)


def small_lenet(num_classes: int = 10) -> nn.Sequential:
    """A sixtieth of it, 54 thousand parameters: input (B, 1, 28, 28)."""
    return _convnet(channels=(6, 16), kernel=5, flat=16 * 7 * 7, hidden=64, num_classes=num_classes)


def _convnet(
    channels: tuple[int, int], kernel: int, flat: int, hidden: int, num_classes: int
) -> nn.Sequential:
    first, second = channels
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, first, kernel, padding=kernel // 2),
            conv1_relu=nn.ReLU(),
            conv1_pool=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, kernel, padding=kernel // 2),
            conv2_relu=nn.ReLU(),
            conv2_pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1_preact=nn.Linear(flat, hidden),
            fc1_relu=nn.ReLU(),
            logits=nn.Linear(hidden, num_classes),
        )
    )
