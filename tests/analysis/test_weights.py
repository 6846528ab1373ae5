"""Checkpoints as people save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from analysis import AnalysisError
from analysis.sources.weights import load_checkpoint_of, load_published, load_weights, read_weights

MODEL = "tests.analysis.small:model"


def trained(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    model = load_small(num_classes)
    model(torch.randn(8, 1, 6, 6))  # moves BatchNorm's statistics
    return model


def load_small(num_classes: int) -> nn.Module:
    from .small import model

    return model(num_classes)


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


FORMS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "plain": lambda state: state,
    "lightning": lambda state: {"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}},
    "trainer": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "ddp": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {"state_dict": {f"module._orig_mod.{n}": t for n, t in state.items()}},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_checkpoint(form: str, tmp_path: Path) -> None:
    source, model = trained(), load_small(3)
    torch.save(FORMS[form](source.state_dict()), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert_same(model, source)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_safetensors(prefix: str, tmp_path: Path) -> None:
    source, model = trained(), load_small(3)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert_same(model, source)


def test_half_precision_is_loaded_into_the_models_own(tmp_path: Path) -> None:
    model = load_small(3)
    torch.save({name: t.half() for name, t in trained().state_dict().items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_checkpoint_brings_its_number_of_classes(tmp_path: Path) -> None:
    source = trained(num_classes=7)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    assert_same(load_checkpoint_of(MODEL, tmp_path / "w.pt", 3), source)
    assert_same(load_checkpoint_of(MODEL, tmp_path / "w.pt", 7), source)


def test_nothing_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "harm").write_text, ("done",)

    torch.save({"state_dict": trained().state_dict(), "hook": Evil()}, tmp_path / "w.pt")
    with pytest.raises(AnalysisError, match=r"holds more than tensors.*save model.state_dict\(\) alone"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


def test_another_model_is_refused_by_the_first_weight_that_differs(tmp_path: Path) -> None:
    state = trained().state_dict()
    torch.save({**state, "conv.weight": torch.zeros(5, 1, 3, 3)}, tmp_path / "w.pt")
    with pytest.raises(AnalysisError, match=r"'conv.weight' is \(5, 1, 3, 3\) there and \(4, 1, 3, 3\) here"):
        load_weights(load_small(3), tmp_path / "w.pt")
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(AnalysisError, match=r"'fc.bias' is missing there"):
        load_weights(load_small(3), tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="there is no checkpoint"):
        read_weights(tmp_path / name)
    for content in (b"", b"garbage" * 100):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnalysisError, match=f"{name}' (is damaged|is no checkpoint)"):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("keep", [10, 500, -20])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_were_cut_short(name: str, keep: int, tmp_path: Path) -> None:
    save = torch.save if name == "w.pt" else safetensors.torch.save_file
    save(trained().state_dict(), tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(AnalysisError, match=name):
        read_weights(tmp_path / name)


def test_what_is_no_state_dict_says_what_it_is(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(AnalysisError, match="holds a list, no state_dict"):
        read_weights(tmp_path / "w.pt")
    torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "w.pt")
    with pytest.raises(AnalysisError, match=r"holds no state_dict \(its keys: epoch, loss\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision:resnet18", "resnet18-f37072fd.pth"),
        ("timm:vit_tiny_patch16_224", "model.safetensors of timm/"),
    ],
)
def test_published_weights_that_cannot_be_fetched(
    name: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(AnalysisError, match=rf"bring the file {file}.* and pass it with --checkpoint FILE"):
        load_published(name)


@pytest.mark.parametrize("name", ["tests.analysis.small:model", "timm:test_resnet_no_such"])
def test_models_without_published_weights(name: str) -> None:
    with pytest.raises(AnalysisError):
        load_published(name)
