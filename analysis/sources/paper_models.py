"""The papers' networks, for `--model paper:NAME`.

Those with published weights come from before torchvision; they fit its models but for a stride, an epsilon, a
pooling.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionC, InceptionE

from .preprocessing import Preprocessing

__all__ = ["digits_convnet", "inception_v3_trunk", "lenet", "mnist_convnet", "resnet50_v1", "small_lenet"]

_CAFFE_MEAN = (123.68, 116.779, 103.939)
_RESNET50_V1 = Preprocessing(
    size=224, resize=256, rgb=True, mean=tuple(m / 255 for m in _CAFFE_MEAN), std=(1 / 255,) * 3
)
_INCEPTION_V3 = Preprocessing(size=299, rgb=True, mean=(128 / 255,) * 3, std=(128 / 255,) * 3)


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


def resnet50_v1(num_classes: int = 1000) -> nn.Module:
    """The ResNet-50 of He et al. (2015) as Keras has it, which Alain & Bengio probe: input (B, 3, 224, 224).

    Where a stage begins, the stride of 2 stands in the first convolution of the block, not in the second.
    """
    model: Any = zoo.resnet50(weights=None, num_classes=num_classes)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    model.preprocessing = _RESNET50_V1
    network: nn.Module = model
    return network


def inception_v3_trunk() -> nn.Module:
    """Inception v3 without classifier and auxiliary head, as of 2015-12-05: input (B, 3, 299, 299).

    Averages leave the padding out, and the pooling in the last block takes the maximum.
    """
    model: Any = zoo.inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False)
    model.fc = nn.Identity()
    for module in model.modules():
        if isinstance(module, (InceptionA, InceptionC, InceptionE)):
            module.branch_pool.__class__ = _AfterAverageWithoutPadding
    model.Mixed_7c.__class__ = _WithMaxPooling
    model.Mixed_7c.branch_pool.__class__ = BasicConv2d
    model.preprocessing = _INCEPTION_V3
    network: nn.Module = model
    return network


class _AfterAverageWithoutPadding(BasicConv2d):  # type: ignore[misc]
    """The convolution after a 3 x 3 average that counted the zeros around the image: undoes that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = F.avg_pool2d(torch.ones_like(x[:1, :1]), kernel_size=3, stride=1, padding=1)
        convolved: torch.Tensor = super().forward(x / share)
        return convolved


class _WithMaxPooling(InceptionE):  # type: ignore[misc]
    """The block with a maximum instead of an average: `branch_pool` runs twice, the second time for good."""

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        *branches, _ = super()._forward(x)
        return [*branches, self.branch_pool(F.max_pool2d(x, kernel_size=3, stride=1, padding=1))]
