"""Mistakes: each is one clear sentence, and nothing has changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from probes import Classification, MultiLabel, ProbeError, ProbeSet, Regression

from .models import CLASSES, ConvNet, Mlp, assert_identical, images, random_streams, vectors


@dataclass
class Scene:
    """A model in the middle of its training, with probes that have taken two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    probes: ProbeSet
    batch: Any

    def forward(self, x: Any = None) -> torch.Tensor:
        return self.model(self.batch[0] if x is None else x)

    def photograph(self) -> Any:
        return copy.deepcopy(
            {
                "model": dict(self.model.state_dict()),
                "gradients": [p.grad for p in self.model.parameters()],
                "optimizer": self.optimizer.state_dict(),
                "probes": self.probes.state_dict(),
                "modes": [m.training for m in self.model.modules()],
                "streams": random_streams(),
            }
        )


@pytest.fixture
def scene() -> Scene:
    model, batches = Mlp(), vectors(3)
    optimizer = torch.optim.Adam(model.parameters())
    probes = ProbeSet(model, ["0", "1", "3"], CLASSES)
    for x, y in batches[:2]:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        probes.step(y)
    return Scene(model, optimizer, probes, batches[2])


def label(value: Any) -> Callable[[Scene], None]:
    def use(scene: Scene) -> None:
        scene.forward()
        scene.probes.step(torch.as_tensor(value))

    return use


def after_eval_only(scene: Scene) -> None:
    with torch.no_grad():
        scene.forward()
    scene.probes.step(scene.batch[1])


def poisoned(value: float) -> Callable[[Scene], None]:
    def use(scene: Scene) -> None:
        handle = scene.model[1].register_forward_hook(
            lambda m, a, out: out.index_fill(0, torch.tensor(1), value)
        )
        scene.probes.detach()
        probes = ProbeSet(scene.model, ["0", "1", "3"], CLASSES)
        probes.load_state_dict(scene.probes.state_dict())
        scene.probes = probes
        scene.forward()
        handle.remove()
        probes.step(scene.batch[1])

    return use


MISTAKES: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "label too large": (label([0, 1, 2, 3, 4, 5, 0, 1]), "label 5 is out of range: with num_classes=5"),
    "label negative": (label([0, 1, 2, 3, 4, -1, 0, 1]), "label -1 is out of range"),
    "float labels": (label([0.5] * 8), "labels are float32, but Classification needs whole numbers"),
    "too few labels": (label([0, 1, 2]), "3 labels were given for a batch of 8 examples"),
    "one label": (label(3), "labels 'y' are one number"),
    "labels per position": (label([[0, 1]] * 8), "there is a label for each of 2 positions"),
    "other targets": (lambda s: (s.forward(), s.probes.step({"z": s.batch[1]})), "labels were given for"),
    "NaN": (poisoned(float("nan")), "the features of layer '1' are NaN or infinite (and those of 1 more: 3)"),
    "infinite": (poisoned(float("inf")), "the features of layer '1' are NaN or infinite"),
    "only no_grad": (after_eval_only, "step() needs a training forward before it"),
    "no batch": (lambda s: s.probes.evaluate([], progress=False), "split 'valid' gave no batch"),
    "nothing to fit": (lambda s: s.probes.fit([], [s.batch], progress=False), "gave no batch in pass 1"),
    "nothing to validate": (lambda s: s.probes.fit([s.batch], [], progress=False), "'valid' gave no batch"),
    "unknown batch": (lambda s: s.probes.evaluate([s.batch[0]], progress=False), "batches are neither"),
    "dict without labels": (
        lambda s: s.probes.evaluate([{"input": s.batch[0]}], progress=False),
        "batches are neither (x, y) nor dicts with labels",
    ),
    "labels out of range when measuring": (
        lambda s: s.probes.evaluate([(s.batch[0], s.batch[1] + 3)], progress=False),
        "is out of range",
    ),
    "NaN when measuring": (
        lambda s: s.probes.evaluate([(s.batch[0] * float("nan"), s.batch[1])], progress=False),
        "the features of layer '0' are NaN or infinite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_sentence_and_no_change(name: str, scene: Scene) -> None:
    use, sentence = MISTAKES[name]
    before = scene.photograph()
    with pytest.raises(ProbeError) as error:
        use(scene)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert_identical(scene.photograph(), before)
    scene.forward()
    scene.probes.step(scene.batch[1])  # and life goes on
    assert scene.probes.state_dict()["bank"]["steps"] == 3


def test_step_twice_on_one_forward(scene: Scene) -> None:
    scene.forward()
    scene.probes.step(scene.batch[1])
    before = scene.photograph()
    with pytest.raises(ProbeError, match="needs a training forward"):
        scene.probes.step(scene.batch[1])
    assert_identical(scene.photograph(), before)


def test_step_before_any_forward() -> None:
    with pytest.raises(ProbeError, match="needs a training forward"):
        ProbeSet(Mlp(), "0", CLASSES).step(torch.zeros(1, dtype=torch.long))


def test_first_batch_with_nan_is_refused_too() -> None:
    model, (x, y) = Mlp(), vectors(1)[0]
    probes = ProbeSet(model, "0", CLASSES)
    model(x * float("nan"))
    with pytest.raises(ProbeError, match="layer '0' are NaN"):
        probes.step(y)
    model(x)
    probes.step(y)
    assert probes._bank.groups[0].weights[0].isfinite().all()


def test_feature_size_that_changes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    y = torch.zeros(2, dtype=torch.long)
    for reduction in ("flatten", "subset:3"):
        with ProbeSet(model, "1", CLASSES, reduce=reduction) as probes:
            model(torch.zeros(2, 6))
            probes.step(y)
            before = copy.deepcopy(probes.state_dict())
            model(torch.zeros(2, 9))
            with pytest.raises(ProbeError, match=re.escape("layer '1' gave 6")):
                probes.step(y)
            assert_identical(probes.state_dict(), before)
            model(torch.zeros(2, 6))
            probes.step(y)


def test_layer_that_ran_before_and_not_now() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.use = nn.Linear(6, 6), nn.Linear(6, 6), True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) if self.use else self.a(x)

    model, (x, y) = Sometimes(), vectors(1)[0]
    with ProbeSet(model, "*", CLASSES) as probes:
        model(x)
        probes.step(y)
        model.use = False
        model(x)
        with pytest.raises(ProbeError, match="layer 'b' did not run in this forward"):
            probes.step(y)


def test_layer_without_features() -> None:
    class Counts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x > 0).sum(1)

    model = nn.Sequential(nn.Linear(6, 6), Counts())
    with ProbeSet(model, "1", CLASSES) as probes:
        model(torch.zeros(2, 6))
        with pytest.raises(ProbeError, match="layer '1' holds no tensor of floating-point features"):
            probes.step(torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "say what the probes predict"),
        ({"num_classes": 3, "targets": Classification(3)}, "not both"),
        ({"num_classes": 1}, "at least 2 classes"),
        ({"targets": {}}, "names no label set"),
        ({"num_classes": 3, "lr": ()}, "lr"),
        ({"num_classes": 3, "lr": -1.0}, "lr"),
        ({"num_classes": 3, "reduce": "median"}, "unknown reduction 'median'"),
    ],
)
def test_conflicting_arguments(options: dict[str, Any], sentence: str) -> None:
    model = Mlp()
    with pytest.raises(ProbeError, match=re.escape(sentence)):
        ProbeSet(model, "0", **options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_data_parallel() -> None:
    with pytest.raises(ProbeError, match=r"DataParallel .* use DDP"):
        ProbeSet(nn.DataParallel(Mlp()), "0", CLASSES)


@pytest.mark.parametrize(
    ("target", "y", "sentence"),
    [
        (MultiLabel(3), torch.zeros(8, 2), "need 3 columns"),
        (MultiLabel(3), torch.full((8, 3), 0.5), "must be 0 or 1"),
        (Regression(2), torch.zeros(8, 3), "need 2 columns"),
        (Regression(), torch.full((8,), float("nan")), "NaN or infinite"),
    ],
)
def test_labels_of_other_targets(target: Any, y: torch.Tensor, sentence: str) -> None:
    model, (x, _) = Mlp(), vectors(1)[0]
    probes = ProbeSet(model, "0", targets=target)
    model(x)
    with pytest.raises(ProbeError, match=sentence):
        probes.step(y)


def test_automatic_layers_that_cannot_be_probed_are_left_out_with_a_reason() -> None:
    class Windows(nn.Module):
        """Folds positions into the batch, as windowed attention does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.inner(x.flatten(2).transpose(1, 2).reshape(-1, 8))
            return rows.view(len(x), -1, 8).transpose(1, 2).view_as(x)

    model = ConvNet()
    model.conv2 = Windows()
    (x, y) = images(1)[0]
    with ProbeSet(model, "auto", CLASSES) as probes:
        model(x)
        probes.step(y)
        assert "conv1" in probes.layers
        assert all("rows" in reason for reason in probes.skipped.values())
