"""The papers' networks as their weights want them, for `--model analysis.pretrained_models:NAME`.

These weights come from before torchvision; they fit its models but for a stride, an epsilon, a pooling.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionC, InceptionE

from .preprocessing import Preprocessing

__all__ = ["inception_v3_trunk", "resnet50_v1"]

_CAFFE_MEAN = (123.68, 116.779, 103.939)
_RESNET50_V1 = Preprocessing(
    size=224, resize=256, rgb=True, mean=tuple(m / 255 for m in _CAFFE_MEAN), std=(1 / 255,) * 3
)
_INCEPTION_V3 = Preprocessing(size=299, rgb=True, mean=(128 / 255,) * 3, std=(128 / 255,) * 3)


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
