"""Detaching leaves no hook, attribute or mode behind; copies of a probed model are free of its probes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode

from probes import ProbeSet, hook_points

from .models import CLASSES, ConvNet, images

LAYERS = ["input", "**", "add", "fc:in"]


def traces(model: nn.Module) -> dict[str, Any]:
    """All that hangs on a model's modules, hooks in order included."""
    plain = (int, float, bool, str, tuple, type(None))
    return {
        f"{path}.{key}": (list(value.items()) if isinstance(value, dict) and "hook" in key else
                          value if isinstance(value, plain) else id(value))
        for path, module in model.named_modules()
        for key, value in vars(module).items()
    }  # fmt: skip


def train_once(model: nn.Module, probes: ProbeSet) -> None:
    (x, y) = images(1)[0]
    F.cross_entropy(model(x), y).backward()
    probes.step(y)


def fail(error: type[BaseException]) -> Callable[[nn.Module, ProbeSet], None]:
    def use(model: nn.Module, probes: ProbeSet) -> None:
        def stop(*_: Any) -> None:
            raise error("stop")

        handle = model.conv2.register_forward_hook(stop)
        try:
            train_once(model, probes)
        finally:
            handle.remove()

    return use


def fail_outside(model: nn.Module, probes: ProbeSet) -> None:
    train_once(model, probes)
    raise RuntimeError("stop")


@pytest.mark.parametrize(
    "use",
    [lambda *_: None, train_once, fail(RuntimeError), fail(KeyboardInterrupt), fail_outside],
    ids=["unused", "used", "failed forward", "interrupted forward", "failed block"],
)
def test_nothing_is_left(use: Callable[[nn.Module, ProbeSet], None]) -> None:
    model = ConvNet()
    model.relu.register_forward_hook(lambda *_: None)  # the user's own stays
    before, keys = traces(model), list(model.state_dict())
    try:
        with ProbeSet(model, LAYERS, CLASSES) as probes:
            use(model, probes)
    except (RuntimeError, KeyboardInterrupt) as error:
        assert str(error) == "stop"  # noqa: PT017 - some uses end without one
    assert traces(model) == before
    assert list(model.state_dict()) == keys
    assert _get_current_function_mode() is None
    probes.detach()  # twice is safe


def test_evaluate_that_fails_restores_the_model() -> None:
    model = ConvNet()
    model.bn1.eval()
    with ProbeSet(model, LAYERS, CLASSES) as probes:
        train_once(model, probes)
        before, streams = traces(model), torch.get_rng_state()

        def broken() -> Any:
            yield images(1)[0]
            torch.rand(1)
            raise RuntimeError("the loader broke")

        with pytest.raises(RuntimeError, match="the loader broke"):
            probes.evaluate(broken(), progress=False)
        assert traces(model) == before
        assert torch.equal(torch.get_rng_state(), streams)
        train_once(model, probes)


def test_failed_selection_leaves_no_hook() -> None:
    model = ConvNet()
    before = traces(model)
    with pytest.raises(ValueError, match="no layer matches"):
        ProbeSet(model, ["conv1", "conv9"], CLASSES)
    assert traces(model) == before


def test_survey_leaves_nothing() -> None:
    model = ConvNet()
    before = traces(model)
    with pytest.raises(ZeroDivisionError):
        hook_points(model, lambda model: model(images(1)[0][0]) / 0 if 1 // 0 else None)
    hook_points(model, lambda model: model(images(1)[0][0]))
    assert {k: v for k, v in traces(model).items() if "bn1" not in k} == {
        k: v for k, v in before.items() if "bn1" not in k
    }


def test_state_dict_keys_do_not_change_while_attached() -> None:
    model = ConvNet()
    keys = list(model.state_dict())
    with ProbeSet(model, LAYERS, CLASSES):
        assert list(model.state_dict()) == keys


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(_saved(model), weights_only=False),
}


def _saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("used", [False, True])
def test_copies_run_and_train_no_probe(way: str, used: bool) -> None:
    model = ConvNet()
    (x, y) = images(1)[0]
    with ProbeSet(model, LAYERS, CLASSES) as probes:
        if used:
            train_once(model, probes)
        twin = COPIES[way](model)
        F.cross_entropy(twin(x), y).backward()
        with pytest.raises(ValueError, match="needs a training forward"):
            probes.step(y)
        train_once(model, probes)
        assert torch.equal(twin.eval()(x), COPIES[way](twin).eval()(x))


def test_saved_model_loads_without_the_probes(tmp_path: Path) -> None:
    """In a process that cannot import the package at all."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    with ProbeSet(model, ["0", "1"], 2):
        torch.save(model, tmp_path / "model.pt")
    code = (
        "import sys; sys.modules['probes'] = None\n"
        "import torch; model = torch.load('model.pt', weights_only=False)\n"
        "print(tuple(model(torch.ones(3, 6)).shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "(3, 4)", done.stderr
