"""torch.compile: probes read compiled models too, whenever they are attached.

A probed layer ends the graph that it is in, so operations across it are no longer fused. With a backend
that keeps eager numerics the bits stay; inductor's differ by rounding (see `ROUNDING`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from probes import ProbeError, ProbeSet

from .models import CLASSES, Mlp, assert_identical, seed_everything, vectors

ROUNDING = 1e-6  # measured: 3e-8 after five steps; deep or chaotic models amplify it step by step


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.fc2(self.relu(self.fc1(x))))


def build() -> nn.Module:
    seed_everything()
    return nn.Sequential(Residual(), Residual(), nn.Linear(6, CLASSES))


LAYERS = ["0", "0.relu_1", "1.fc1", "2"]
WITH_OPERATION = [*LAYERS, "1.add"]


def train(backend: str | None, attach: str, layers: Any = LAYERS, **options: Any) -> dict[str, Any]:
    """Five steps; probes attached "never", "before" or "after" the first compiled call."""
    model = build()
    run = model if backend is None else torch.compile(model, backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probes = ProbeSet(run, layers, CLASSES) if attach == "before" else None
    losses, rows = [], []
    for i, (x, y) in enumerate(vectors(5)):
        if i == 2 and attach == "after":
            probes = ProbeSet(model if options.get("inner") else run, layers, CLASSES)
        loss = F.cross_entropy(run(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if probes:
            assert probes._reader.features is not None
            rows.append({name: value for name, (value, _) in probes._reader.features.items()})
            probes.step(y)
    read = list(probes.layers) if probes else []
    if probes:
        probes.detach()
    return {"weights": dict(model.state_dict()), "losses": losses, "read": read, "rows": rows}


@pytest.mark.parametrize("layers", [LAYERS, WITH_OPERATION], ids=["modules", "operation"])
@pytest.mark.parametrize("attach", ["before", "after"])
def test_probes_read_what_they_read_without_compiling(attach: str, layers: list[str]) -> None:
    eager, compiled = train(None, attach, layers), train("aot_eager", attach, layers)
    assert set(compiled["read"]) == set(layers)
    assert_identical(compiled, eager)
    assert_identical(compiled["weights"], train("aot_eager", "never")["weights"])


def test_attached_by_the_inner_model_after_compiling() -> None:
    """Nothing tells that model that it has been compiled; its compiled code is forgotten all the same."""
    compiled = train("aot_eager", "after", "auto", inner=True)
    assert_identical(compiled, train(None, "after", "auto", inner=True))
    assert len(compiled["read"]) > 2


def test_model_compiled_in_place_after_its_first_call() -> None:
    model, batches = Mlp(), vectors(3)
    model.compile(backend="aot_eager")
    model(batches[0][0])
    with ProbeSet(model, ["0", "3"], CLASSES) as probes:
        for x, y in batches:
            model(x)
            probes.step(y)
        assert probes.layers == ("0", "3")


def test_part_compiled_after_its_first_call() -> None:
    model, batches = build(), vectors(3)
    model[0].compile(backend="aot_eager")
    model(batches[0][0])
    with ProbeSet(model, ["0.fc1", "0.add", "2"], CLASSES) as probes:
        for x, y in batches:
            model(x)
            probes.step(y)
        assert probes.layers == ("0.fc1", "0.add", "2")


def test_compiled_code_is_whole_again_after_detaching() -> None:
    """The model compiles to one graph, as it did before there were probes."""
    model, ((x, y), *_) = build(), vectors(1)
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    run = torch.compile(model, backend=counting)
    run(x)
    assert len(graphs) == 1
    with ProbeSet(run, LAYERS, CLASSES) as probes:
        for _ in range(2):  # the first one is followed and runs as it is
            run(x)
            probes.step(y)
        assert len(graphs) > 2
    graphs.clear()
    run(x)
    assert len(graphs) == 1


@pytest.mark.parametrize("layers", ["auto", LAYERS])
def test_compiled_code_that_skips_the_hooks_is_noticed(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a torch to come keep its compiled code after all."""
    monkeypatch.setattr("probes.features.taps._forget_compiled", lambda model: None)
    model, ((x, y), *_) = Wrapped(build()), vectors(1)
    run = torch.compile(model, backend="aot_eager")
    run(x)

    def two_steps() -> None:  # the first forward is followed, which compiled code takes notice of
        for _ in range(2):
            run(x)
            probes.step(y)

    names = layers if layers == "auto" else [f"inner.{n}" for n in layers]
    with (
        ProbeSet(run, names, CLASSES) as probes,
        pytest.raises(ProbeError, match=r"call torch.compiler.reset\(\)"),
    ):
        two_steps()


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_evaluation_of_a_compiled_model() -> None:
    model, batches = build(), vectors(3)
    run = torch.compile(model, backend="aot_eager")
    with ProbeSet(run, LAYERS, CLASSES) as probes, ProbeSet(build(), LAYERS, CLASSES) as plain:
        results = [p.evaluate(batches, progress=False) for p in (probes, plain)]
    assert str(results[0]) == str(results[1])


@pytest.mark.slow
@pytest.mark.parametrize("attach", ["before", "after"])
def test_inductor_differs_by_rounding(attach: str) -> None:
    plain, probed = train("inductor", "never"), train("inductor", attach)
    for name, value in plain["weights"].items():
        torch.testing.assert_close(probed["weights"][name], value, rtol=ROUNDING, atol=ROUNDING)
    assert set(probed["read"]) == set(LAYERS)
