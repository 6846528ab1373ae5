"""Choosing layers: globs, regular expressions, types, predicates, exclusions; and mistakes in them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from probes import HookPoint, ProbeError, ProbeSet

from .models import CLASSES, ConvNet

RESNET = torchvision.models.resnet18(num_classes=CLASSES)


def chosen(layers: Any, exclude: Any = (), model: nn.Module = RESNET, size: int = 32) -> list[str]:
    x = torch.randn(2, 3, size, size)
    with ProbeSet(model, layers, CLASSES, exclude=exclude) as probes:
        model(x)
        probes.step(torch.zeros(2, dtype=torch.long))
        return list(probes.layers)


BLOCKS = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]


def is_second_add(point: HookPoint) -> bool:
    return point.kind == "operation" and point.type == "add" and point.scope == "layer2.1"


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("layer1", ["layer1"]),
        ("layer?", ["layer1", "layer2", "layer3", "layer4"]),
        ("layer*.*", BLOCKS),  # a star stops at dots
        ("layer[12].0", ["layer1.0", "layer2.0"]),
        ("layer1.0.relu_1", ["layer1.0.relu_1"]),
        ("layer*.1.add", [f"layer{i}.1.add" for i in range(1, 5)]),
        ("**.downsample", ["layer2.0.downsample", "layer3.0.downsample", "layer4.0.downsample"]),
        ("layer1.**.conv1", ["layer1.0.conv1", "layer1.1.conv1"]),
        ("**.conv1", ["conv1", *(f"{b}.conv1" for b in BLOCKS)]),
        (re.compile(r"layer\d\.0\.add"), [f"layer{i}.0.add" for i in range(1, 5)]),
        (nn.MaxPool2d, ["maxpool"]),
        (torchvision.models.resnet.BasicBlock, BLOCKS),
        (is_second_add, ["layer2.1.add"]),
        (["fc", "input", "flatten", "maxpool:in"], ["input", "maxpool:in", "flatten", "fc"]),
        ("output", ["output"]),
        (["fc", "fc", "f*c"], ["fc"]),
    ],
)
def test_what_a_pattern_chooses(layers: Any, expected: list[str]) -> None:
    assert chosen(layers) == expected


def test_a_star_alone_means_modules_and_never_the_whole_model() -> None:
    assert chosen("*", model=ConvNet(), size=8) == [
        "conv1", "bn1", "relu", "drop", "conv2", "relu_1", "relu_2", "fc"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ("layer[34].*", BLOCKS[:4]),
        (re.compile("layer[^1].*"), BLOCKS[:2]),
        (torchvision.models.resnet.BasicBlock, []),
        (lambda point: point.name.endswith(".1"), BLOCKS[::2]),
    ],
)
def test_exclusion(exclude: Any, expected: list[str]) -> None:
    assert chosen(["layer*.*", "fc"], exclude) == [*expected, "fc"]


def test_operations_inside_torchs_own_modules_have_no_names() -> None:
    assert [n for n in chosen(re.compile(".*"), model=ConvNet(), size=8) if n.startswith("conv1.")] == []


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("layer1.0.cnv1", "no layer matches 'layer1.0.cnv1'; the nearest names are layer1.0.conv1"),
        ("layer9", "no layer matches 'layer9'; the nearest names are layer4"),
        (nn.LSTM, "the model has no layer of type LSTM"),
        ([], "no layers were asked for"),
        ([3], "3 does not say which layers"),
    ],
)
def test_refused_at_once(layers: Any, sentence: str) -> None:
    with pytest.raises(ProbeError, match=re.escape(sentence)):
        ProbeSet(RESNET, layers, CLASSES)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("layer1.0.add_7", "no layer matches 'layer1.0.add_7'; the nearest names are layer1.0.add"),
        ("layer1.0.mul", "no layer matches 'layer1.0.mul'"),
        (re.compile("nothing"), "no layer matches 'nothing'"),
        (lambda point: False, "accepted none of the model's layers"),
    ],
)
def test_refused_by_the_first_step(layers: Any, sentence: str) -> None:
    with pytest.raises(ProbeError, match=re.escape(sentence)):
        chosen(layers)


def test_layer_that_never_runs() -> None:
    model = ConvNet()
    model.spare = nn.Linear(3, 3)
    with pytest.raises(ProbeError, match="layer 'spare' exists but the model's forward never runs it"):
        chosen(["conv1", "spare"], model=model, size=8)


def test_element_that_does_not_exist() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"hidden": x.mean((2, 3)).requires_grad_()}

    with pytest.raises(ProbeError, match=r"has no element 'hiden'.*nearest names are hidden"):
        chosen("output:hiden", model=Two())


def test_wrappers_are_looked_through() -> None:
    compiled = torch.compile(ConvNet(), backend="eager")
    with ProbeSet(compiled, "conv1", CLASSES) as probes:
        assert probes.model is compiled._orig_mod
