"""A probe never changes the model: training with probes gives the same bits as training without."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from .models import (
    CLASSES,
    Branching,
    ConvNet,
    Mlp,
    Tagger,
    Training,
    assert_identical,
    images,
    plain_step,
    vectors,
)

EVERYTHING = re.compile(r"[^:]*")  # every module and operation


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=CLASSES)


def inception() -> nn.Module:
    return torchvision.models.inception_v3(num_classes=CLASSES, init_weights=False, aux_logits=True)


def googlenet() -> nn.Module:
    return torchvision.models.googlenet(num_classes=CLASSES, init_weights=False, aux_logits=True)


def vit() -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES, proj_drop_rate=0.1
    )


def swin() -> nn.Module:
    return timm.models.SwinTransformer(
        img_size=16,
        patch_size=2,
        window_size=4,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(1, 2),
        num_classes=CLASSES,
    )


class Checkpointed(nn.Module):
    """Recomputes its blocks in the backward pass, with their dropout."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 12), nn.ReLU(inplace=True), nn.Dropout(0.4)) for _ in range(2)
        )
        self.head = nn.Linear(12, CLASSES)
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class Nested(nn.Module):
    """Runs part of its own forward inside function modes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.device("cpu"):
            h = torch.relu(self.first(x) + torch.zeros(12))
        with _Counting():
            return self.second(F.dropout(h * 2, 0.2))


class _Counting(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def frozen() -> nn.Module:
    model = ConvNet()
    for part in (model.conv1, model.bn1):
        part.requires_grad_(False)
    return model


CASES = {
    "convnet": Training(ConvNet, images(), ["input", "**", "add", "output"]),
    "convnet, everything": Training(ConvNet, images(), EVERYTHING),
    "convnet, types": Training(ConvNet, images(), [nn.Conv2d, nn.ReLU]),
    "frozen parts": Training(frozen, images(), EVERYTHING),
    "resnet18": Training(resnet18, images(2, 2, 32), ["layer*.*", "layer1.0.add", "layer2.0.relu_1", "fc"]),
    "vit": Training(vit, images(2, 4, 16), ["blocks.*.attn.*", "**.add*", "blocks.1.mlp.fc1", "norm"]),
    "vit, auto": Training(vit, images(2, 4, 16)),
    "swin": Training(swin, images(2, 4, 16), ["layers.*.blocks.*", "layers.*"]),
    "lstm": Training(
        Tagger, [(torch.randn(6, 7, 4), torch.randint(CLASSES, (6,))) for _ in range(3)], ["lstm", "lstm:0"]
    ),
    "untraceable": Training(Branching, vectors(), EVERYTHING),
    "nested modes": Training(Nested, vectors(), ["first", "relu", "add", "mul", "dropout", "second"]),
    "recomputed": Training(lambda: Checkpointed(False), vectors(), EVERYTHING),
    "recomputed, reentrant": Training(lambda: Checkpointed(True), vectors(), EVERYTHING),
    "two sets": Training(ConvNet, images(), EVERYTHING, sets=2),
    "every third step": Training(ConvNet, images(7), EVERYTHING, options={"every": 3}),
    "grid of rates, all targets' positions pooled": Training(
        ConvNet, images(), ["conv*"], options={"lr": (0.1, 0.01), "reduce": "avg:2,project:16"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_training_is_identical(name: str) -> None:
    case = CASES[name]
    assert_identical(case.run(probed=True), case.run(probed=False))


def test_auxiliary_heads() -> None:
    case = Training(googlenet, images(2, 2, 64), ["inception3a", "inception4a.cat", "aux1.fc2", "fc"])
    assert_identical(case.run(probed=True), case.run(probed=False))


@pytest.mark.slow
def test_inception() -> None:
    case = Training(inception, images(2, 2, 299), ["Mixed_5b", "Mixed_6e.cat", "AuxLogits.fc", "fc"])
    assert_identical(case.run(probed=True), case.run(probed=False))


def autocast(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if probes:
        probes.step(y)
    return loss.detach()


def accumulating(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    for half in (slice(0, 3), slice(3, 6)):
        F.cross_entropy(model(x[half]), y[half]).backward()
        if probes:
            probes.step(y[half])
    optimizer.step()
    optimizer.zero_grad()
    return torch.zeros(())


def several_forwards(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    model(x[:2])
    model(x.flip(0))
    return plain_step(model, optimizer, x, y, probes)


def interleaved_forwards(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    output = model(x)
    with torch.no_grad():
        model(x[:1].expand(3, -1, -1, -1))
    model.eval()
    model(x[:2])
    model.train()
    loss = F.cross_entropy(output, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if probes:
        probes.step(y)  # those of the training forward
    return loss.detach()


def measuring(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    """Asks for an evaluation and a fit between forward and backward."""
    loss = F.cross_entropy(model(x), y)
    if probes:
        shuffled = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
        own = DataLoader(
            TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)
        )
        probes.evaluate(shuffled, progress=False)
        probes.step(y)
        probes.fit(shuffled, own, max_epochs=2, progress=False)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def failing(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
    """A forward that fails in its middle, one that is interrupted, and one that ends."""
    for error in (RuntimeError, KeyboardInterrupt):
        handle = model.drop.register_forward_pre_hook(lambda *_, error=error: _raise(error))
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            model(x)
        handle.remove()
    return plain_step(model, optimizer, x, y, probes)


def _raise(error: type[BaseException]) -> None:
    raise error("stop")


STEPS = [autocast, accumulating, several_forwards, interleaved_forwards, measuring, failing]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_ways_of_training(step: Any) -> None:
    case = Training(ConvNet, images(), EVERYTHING, step=step)
    assert_identical(case.run(probed=True), case.run(probed=False))


def test_comparison_would_notice() -> None:
    """The test of the tests: one draw from the random stream, or one changed weight, is found."""

    def disturbed(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
        if probes:
            torch.rand(1)
        return plain_step(model, optimizer, x, y, probes)

    case = Training(Mlp, vectors(), step=disturbed)
    with pytest.raises(AssertionError, match="streams"):
        assert_identical(case.run(probed=True), case.run(probed=False))


def test_recomputation_is_not_read_again() -> None:
    """The features of a step are those of the forward, not those that its backward recomputes."""
    seen = []

    def spying(model: nn.Module, optimizer: Any, x: Any, y: Any, probes: Any) -> Any:
        output = model(x)
        if probes:
            seen.append(probes.sets[0]._reader.features)
        F.cross_entropy(output, y).backward()
        if probes:
            assert probes.sets[0]._reader.features is seen[-1]
            probes.step(y)
        optimizer.step()
        return output.detach()

    Training(lambda: Checkpointed(False), vectors(), EVERYTHING, step=spying).run(probed=True)
    assert all({"blocks.0", "blocks.1.0", "add", "head"} <= set(batch) for batch in seen)
