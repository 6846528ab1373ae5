"""The graph of a model has the edges along which features flow, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from analysis import AnalysisError, ModelGraph, model_graph
from probes import ProbeError, hook_points
from probes.features.auto import automatic_layers
from tests.probes.models import ConvNet, Tagger, assert_identical, random_streams


def graph_of(model: nn.Module, x: Any, *probed: str) -> ModelGraph:
    return model_graph(model, lambda model: model(x), probed)


def edges(graph: ModelGraph) -> set[str]:
    assert len(graph.edges) == len(set(graph.edges))
    return {f"{source} > {target}" for source, target in graph.edges}


class Centre(nn.Module):
    """Subtracts a running mean: a state, by which one call must not seem to feed the next."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


class Net(nn.Module):
    """Layers `a` to `d` and a ReLU, wired by the function given."""

    def __init__(self, wiring: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.relu, self.inplace, self.same = nn.ReLU(), nn.ReLU(inplace=True), nn.Identity()
        self.centre = Centre()
        self.wiring = wiring

    def forward(self, x: torch.Tensor) -> Any:
        return self.wiring(self, x)


def residual(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    return m.d(h + m.c(F.relu(m.b(h))))


def in_place(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    y = m.b(h)
    y += h
    return m.d(m.inplace(y))


def branches(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    return m.d(torch.cat([m.b(h), m.c(h)])[:2])


def reused(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.relu(m.b(m.relu(m.a(x))))


def reused_state(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    return m.centre(m.b(h)) + m.centre(m.c(h))


def split(m: Any, x: torch.Tensor) -> torch.Tensor:
    left, right = m.a(x).chunk(2, dim=1)
    return torch.cat([left, F.relu(right)], dim=1)


def written_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(2, 2, 4)
    out[:, 0] = m.a(x)
    view = out.view(2, 8)
    out[:, 1].add_(m.b(x))
    return m.c(view[:, :4])


def overwritten(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    before = m.b(h)
    m.inplace(h)
    return before + m.c(h)


def identity_shortcut(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    shortcut = m.same(h)
    return shortcut + m.b(h)


def constants(m: Any, x: torch.Tensor) -> torch.Tensor:
    position = F.relu(m.b.weight[:2])
    m.c(x)  # of no use
    return m.a(x) + position


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


def dictionaries(m: Any, x: torch.Tensor) -> dict[str, Any]:
    inner = {"h": m.a(x)}
    return {"out": Output(m.b(inner["h"]), (m.c(inner["h"]),))}


CASES: list[tuple[Callable[..., Any], str, set[str]]] = [
    (residual, "a add d", {"a > c", "a > add", "c > add", "add > d"}),
    (residual, "a b c d", {"a > b", "b > c", "a > d", "c > d"}),
    (in_place, "a b add inplace d", {"a > b", "a > add", "b > add", "add > inplace", "inplace > d"}),
    (branches, "a cat d", {"a > b", "a > c", "b > cat", "c > cat", "cat > d"}),
    (reused, "a relu b relu_1", {"a > relu", "relu > b", "b > relu_1"}),
    (reused_state, "a centre centre_1 add", {"a > centre", "a > centre_1", "centre > add", "centre_1 > add"}),
    (split, "a chunk relu cat", {"a > chunk", "chunk > relu", "chunk > cat", "relu > cat"}),
    (written_view, "a b view add c", {"input > a", "input > b", "a > view", "a > getitem", "getitem > add",
                                      "b > add", "view > c", "add > c"}),
    (overwritten, "a b inplace c", {"a > b", "a > inplace", "inplace > c", "b > add", "c > add"}),
    (identity_shortcut, "a b add", {"a > b", "a > add", "b > add"}),
    (identity_shortcut, "a same b add", {"a > same", "same > b", "same > add", "b > add"}),
    (constants, "a add", {"a > add"}),
    (dictionaries, "a b c", {"a > b", "a > c"}),
]  # fmt: skip


@pytest.mark.parametrize(("wiring", "probed", "expected"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_edges(wiring: Callable[..., Any], probed: str, expected: set[str]) -> None:
    assert edges(graph_of(Net(wiring).eval(), torch.randn(2, 4), *probed.split())) == expected


def test_chain_merges_into_what_is_probed() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    graph = graph_of(model.eval(), torch.randn(3, 4), "0", "3", "5")
    assert edges(graph) == {"0 > 3", "3 > 5"}
    assert [node.parts for node in graph.nodes] == [("input", "0"), ("1", "3"), ("4", "5")]
    assert [(node.type, node.probed) for node in graph.nodes] == [("Linear", True)] * 3


def test_input_and_output_can_be_probed() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(2, 4), "input", "1:in", "output")
    assert edges(graph) == {"input > 1:in", "1:in > output"}


class Headed(nn.Module):
    """An auxiliary head in training, behind nested blocks."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.BatchNorm1d(4))
        self.blocks = nn.ModuleList([block, nn.Sequential(nn.Linear(4, 4), nn.Dropout())])
        self.aux, self.head = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        h = self.blocks[0](x)
        aux = self.aux(h) if self.training else None
        out = self.head(self.blocks[1](h))
        return (out, aux) if self.training else out


def test_auxiliary_head_in_train_mode() -> None:
    layers = "blocks.0", "blocks.1", "head"
    x = torch.randn(8, 4)
    main = {"blocks.0 > blocks.1", "blocks.1 > head"}
    assert edges(graph_of(Headed().eval(), x, *layers)) == main
    assert edges(graph_of(Headed().train(), x, *layers)) == main | {"blocks.0 > aux"}
    with pytest.raises(ProbeError, match="'aux' exists but the model's forward never runs it"):
        graph_of(Headed().eval(), x, *layers, "aux")


def test_blocks_open_only_around_probes() -> None:
    x = torch.randn(8, 4)
    closed = graph_of(Headed().eval(), x, "head")
    assert [node.name for node in closed.nodes] == ["head"]
    opened = graph_of(Headed().eval(), x, "blocks.0.0.0", "blocks.0", "head")
    assert edges(opened) == {"blocks.0.0.0 > blocks.0", "blocks.0 > head"}
    assert opened.nodes[1].parts == ("blocks.0.0.1", "blocks.0.0", "blocks.0.1", "blocks.0")


def test_lstm() -> None:
    x = torch.randn(2, 5, 4)
    assert edges(graph_of(Tagger().eval(), x, "lstm", "head")) == {"lstm > head"}
    assert edges(graph_of(Tagger().eval(), x, "lstm:1.0", "head")) == {"lstm:1.0 > head"}
    packed = model_graph(Tagger(packed=True), lambda m: m(x, torch.tensor([5, 3])), ["lstm", "head"])
    assert {"input > index_select", "lstm > head"} < edges(packed)  # by the lengths, too
    assert [source for source, target in packed.edges if target == "head"] == ["lstm"]


def test_convnet_with_reused_relu_and_function() -> None:
    graph = graph_of(ConvNet(), torch.randn(2, 3, 8, 8), "relu", "relu_1", "relu_2", "fc")
    assert edges(graph) == {"relu > relu_1", "relu > relu_2", "relu_1 > relu_2", "relu_2 > fc"}


# -- models that people use ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> ModelGraph:
    model = torchvision.models.inception_v3(init_weights=False).train()
    return graph_of(model, torch.randn(2, 3, 299, 299), *automatic_layers(model))


def sources(graph: ModelGraph, name: str) -> list[str]:
    return [source for source, target in graph.edges if target == name]


def test_resnet50_has_sixteen_blocks_with_shortcuts() -> None:
    model = torchvision.models.resnet50().eval()
    graph = graph_of(model, torch.randn(1, 3, 32, 32), *automatic_layers(model))
    blocks = [node.name for node in graph.nodes if node.type == "Bottleneck"]
    assert len(blocks) == 16
    assert len(graph.nodes) <= 60
    for before, block in zip(["bn1", *blocks], blocks, strict=False):
        body = f"{block}.conv2"
        shortcut = f"{block}.downsample" if block.endswith(".0") else before
        assert set(sources(graph, block)) == {body, shortcut}
        assert sources(graph, body) == [before]
        if block.endswith(".0"):
            assert sources(graph, shortcut) == [before]
    assert sources(graph, "fc") == [blocks[-1]]
    assert len(graph.edges) == 1 + 1 + 16 * 3 + 4 + 1  # input, bn1; body and two ways in, downsample; fc


def test_inception_shows_branches_and_auxiliary_head(inception: ModelGraph) -> None:
    blocks = [node.name for node in inception.nodes if node.name.startswith("Mixed") and node.probed]
    assert len(blocks) == 11
    assert [len(sources(inception, b)) for b in blocks] == [4, 4, 4, 3, 4, 4, 4, 4, 3, 4, 4]
    for before, block in zip(["maxpool2", *blocks], blocks, strict=False):
        inside = [n.name for n in inception.nodes if n.name.startswith(f"{block}.")]
        entering = {n for n in inside if before in sources(inception, n)}
        assert len(entering) == len(sources(inception, block))
    assert set(sources(inception, "Mixed_5b")) == {
        "Mixed_5b.branch1x1", "Mixed_5b.branch5x5_2", "Mixed_5b.branch3x3dbl_3", "Mixed_5b.branch_pool"
    }  # fmt: skip
    assert sources(inception, "AuxLogits") == ["Mixed_6e"]
    assert not [edge for edge in inception.edges if edge[0] == "AuxLogits"]
    assert sources(inception, "fc") == ["Mixed_7c"]


def test_vit_is_a_chain_of_blocks() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    graph = graph_of(model, torch.randn(1, 3, 32, 32), *automatic_layers(model))
    blocks = [f"blocks.{i}" for i in range(12)]
    for before, block in zip(["add", *blocks], blocks, strict=False):
        attention, add, mlp = (f"{block}.{part}" for part in ("attn", "add", "mlp"))
        assert sources(graph, attention) == [before]
        assert set(sources(graph, add)) == {before, attention}
        assert sources(graph, mlp) == [add]
        assert set(sources(graph, block)) == {add, mlp}
    assert len(graph.nodes) == 12 * 4 + 4


def test_densenet_is_closed_to_be_readable() -> None:
    model = torchvision.models.densenet121().eval()
    graph = graph_of(model, torch.randn(1, 3, 32, 32), *automatic_layers(model))
    assert len(graph.edges) == len(graph.nodes) - 1 < 20


def test_names_are_hook_points() -> None:
    model = torchvision.models.googlenet(init_weights=False).eval()
    x = torch.randn(1, 3, 32, 32)
    names = {point.name for point, _ in hook_points(model, lambda model: model(x))} | {"input"}
    graph = graph_of(model, x, *(n for n in automatic_layers(model) if not n.startswith("aux")))
    assert {part for node in graph.nodes for part in node.parts} <= names


# -- the model stays as it was -------------------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_model_stays_as_it_was(fails: bool) -> None:
    last = Failing() if fails else nn.Linear(4, 2)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), last)
    model[2].eval()
    x = torch.randn(8, 4)

    def run(model: nn.Module) -> Any:
        model[2].train()  # type: ignore[index]
        return model(x)

    def everything() -> dict[str, Any]:
        return {
            "state": {name: value.clone() for name, value in model.state_dict().items()},
            "modes": [m.training for m in model.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "gradients": [p.grad for p in model.parameters()],
            "streams": random_streams(),
        }

    before, buffers = everything(), list(model.buffers())
    if fails:
        with pytest.raises(RuntimeError, match="no"):
            model_graph(model, run, ["0"])
    else:
        model_graph(model, run, ["0"])
    assert_identical(before, everything())
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.is_grad_enabled()
    assert _get_current_function_mode() is None
    assert _get_current_dispatch_mode() is None


def test_a_module_without_features_hides_nothing() -> None:
    class Mask(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x > 0

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mask, self.b = nn.Linear(4, 4), Mask(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return self.b(h * self.mask(h))

    assert edges(graph_of(Masked(), torch.randn(2, 4), "a", "b")) == {"a > b"}


def test_a_model_that_did_not_run() -> None:
    with pytest.raises(AnalysisError, match="`run` did not call the model"):
        model_graph(nn.Linear(4, 4), lambda model: None, ["output"])


def test_the_last_of_several_forwards_counts() -> None:
    graph = model_graph(ConvNet(), lambda m: [m(torch.randn(2, 3, 8, 8)) for _ in range(2)], ["conv1", "fc"])
    assert edges(graph) == edges(graph_of(ConvNet(), torch.randn(2, 3, 8, 8), "conv1", "fc"))


def test_unknown_layer_is_named() -> None:
    with pytest.raises(ProbeError, match="no layer matches 'layr1'"):
        graph_of(torchvision.models.resnet18(), torch.randn(1, 3, 32, 32), "layr1")
