"""Hook points carry torchvision's node names, in execution order, also where torch.fx cannot trace."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchvision.models.feature_extraction import get_graph_node_names

from probes import ProbeSet, hook_points

from .models import CLASSES, Branching, ConvNet, Tagger, images

ZOO = {
    "resnet50": 32,
    "densenet121": 32,
    "googlenet": 64,
    "shufflenet_v2_x0_5": 32,
    "efficientnet_b0": 32,
    "inception_v3": 75,
}


@pytest.mark.parametrize("name", ZOO)
def test_names_are_torchvisions(name: str) -> None:
    """Of every node that torchvision names and whose value is features, in the same order."""
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, **options).eval()
    x = torch.randn(1, 3, ZOO[name], ZOO[name])
    found = [point.name for point, _ in hook_points(model, lambda model: model(x))]
    expected = get_graph_node_names(model)[1]
    own = {"input", "x", "output"}  # the placeholder is `x` there and `input` here; `output` is ours
    modules = dict(model.named_modules())
    inside_ops = tuple(
        f"{n}." for n, m in modules.items() if type(m).__module__.startswith("torchvision.ops")
    )
    extra = set(found) - set(expected) - own - set(modules)
    assert all(name.startswith(inside_ops) for name in extra)  # there torchvision does not look
    tensors = [n for n in expected if n not in own and n in set(found)]
    assert [n for n in found if n in set(expected) - own] == tensors
    not_features = [n for n in expected if n not in own and n not in set(found)]
    assert all(n.split(".")[-1].rstrip("_0123456789") in ("size", "getattr", "getitem", "floordiv", "chunk")
               for n in not_features), not_features  # fmt: skip


def names(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    return [point.name for point, _ in hook_points(model, lambda model: model(*args, **kwargs))]


def test_calls_of_one_module_are_numbered() -> None:
    assert names(ConvNet(), images(1)[0][0]) == [
        "conv1",
        "bn1",
        "relu",
        "drop",
        "conv2",
        "relu_1",
        "add",
        "relu_2",
        "adaptive_avg_pool2d",
        "flatten",
        "fc",
        "output",
    ]


def test_operations_without_a_trace() -> None:
    with pytest.raises((TypeError, torch.fx.proxy.TraceError)):
        torch.fx.symbolic_trace(Branching())
    found = names(Branching(), torch.ones(3, 6))
    assert [n for n in found if n.split("_")[0] in ("a", "b", "add", "relu", "neg")][:5] == [
        "a",
        "add",
        "relu",
        "add_1",
        "relu_1",
    ]
    assert found[-1] == "output"


class Operators(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 1 - x
        y = 2.0 / (y + 3)
        y += 1
        y = y @ x.T
        return -(2**y)


def test_python_operators_have_the_names_of_the_operator_module() -> None:
    found = names(Operators(), torch.ones(2, 3))
    assert found == ["sub", "add", "truediv", "add_1", "matmul", "pow", "neg", "output"]
    assert [n for n in get_graph_node_names(Operators())[1] if n in found] == found[:-1]


# -- inputs, outputs and their elements -------------------------------------------------------------


def shapes(model: nn.Module, layers: Any, *args: Any, **kwargs: Any) -> dict[str, tuple[int, ...]]:
    """The features (whole, as a training forward gave them) of these layers, in order."""
    return {n: tuple(x.shape) for n, x in features(model, layers, *args, **kwargs).items()}


def features(model: nn.Module, layers: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    with ProbeSet(model, layers, CLASSES, reduce="flatten") as probes:
        output = model.train()(*args, **kwargs)
        del output
        batch = probes._reader.features or {}
        probes.step(torch.zeros(len(next(iter(batch.values()))[0]), dtype=torch.long))
        return {name: batch[name][0] for name in probes.layers}


def test_input_output_and_inputs_of_modules() -> None:
    model, x = ConvNet().requires_grad_(), images(1)[0][0]
    model.drop.p = 0.0
    found = features(model, ["input", "conv2:in", "conv2", "fc:in", "output"], x)
    assert list(found) == ["input", "conv2:in", "conv2", "fc:in", "output"]
    assert torch.equal(found["input"], x.flatten(1))
    assert torch.equal(model.conv2(found["conv2:in"].view(-1, 8, 8, 8)).flatten(1), found["conv2"])
    assert torch.equal(model.fc(found["fc:in"]), found["output"])


def test_elements_of_an_lstm() -> None:
    x = torch.randn(3, 7, 4)
    model = Tagger()
    with ProbeSet(model, ["lstm", "lstm:0", "lstm:1.0"], CLASSES, reduce="last") as probes:
        model(x)
        batch = probes._reader.features
    assert batch is not None
    assert torch.equal(batch["lstm"][0], batch["lstm:0"][0])
    assert batch["lstm"][0].shape == (3, 6)


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


Pair = namedtuple("Pair", "logits hidden")


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = nn.Linear(6, CLASSES), kind

    def forward(self, *, x: torch.Tensor, ids: torch.Tensor) -> Any:
        h = self.body(x)
        hidden = (h + 1, h + 2)
        make: dict[str, Any] = {
            "dict": lambda: {"ids": ids, "logits": h, "hidden": hidden},
            "dataclass": lambda: Answer(h, hidden),
            "namedtuple": lambda: Pair(h, hidden),
        }
        return make[self.kind]()


@pytest.mark.parametrize("kind", ["dict", "dataclass", "namedtuple"])
def test_structured_outputs(kind: str) -> None:
    model, x = Structured(kind), torch.randn(3, 6)
    second = "output:1.1" if kind == "namedtuple" else "output:hidden.1"
    found = features(model, ["input", "output", second], x=x, ids=torch.arange(3))
    h = model.body(x)
    assert torch.equal(found["input"], x)
    assert torch.equal(found["output"], h)  # the first floating-point tensor: not the integer ids
    assert torch.equal(found[second], h + 2)


def test_named_input() -> None:
    model, x = Structured("dict"), torch.randn(3, 6)
    assert torch.equal(features(model, ["output:in.x"], x=x, ids=torch.arange(3))["output:in.x"], x)


def test_packed_sequences_are_features() -> None:
    model = Tagger(packed=True)
    found = names(model, torch.randn(3, 7, 4), torch.tensor([7, 2, 5]))
    assert found[-3:] == ["lstm", "head", "output"] or "lstm" in found
    assert pack_padded_sequence(torch.randn(3, 7, 4), torch.tensor([7, 5, 2]), batch_first=True)


def test_execution_order_not_definition_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(6, CLASSES), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    assert list(shapes(Backwards(), "*", torch.randn(3, 6))) == ["first", "last"]


def test_a_module_without_features_hides_nothing_after_it() -> None:
    class Largest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.argmax(1)

    model = nn.Sequential(nn.Linear(3, 4), Largest(), nn.Embedding(4, 2), nn.Linear(2, 2))
    names = [point.name for point, _ in hook_points(model, lambda m: m(torch.randn(2, 3)))]
    assert names == ["0", "2", "3", "output"]
