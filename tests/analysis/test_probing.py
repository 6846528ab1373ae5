"""Probing a checkpoint, and the snapshots of a run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from analysis import AnalysisError, Run, load_data
from analysis.cli import main
from analysis.probing import ProbeSettings, probe_model, probe_snapshots
from analysis.training import train
from analysis.weights import load_weights

from .small import SETTINGS, model

PROBING = ProbeSettings(layers=("input", "conv", "relu", "fc"), l2=(1e-1, 1e-3), batch_size=16)
DATA = "tests.analysis.small:data"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    train(replace(SETTINGS, evaluate="none"), path, progress=False)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def untrained() -> nn.Module:
    torch.manual_seed(0)
    return model(3)


def test_a_checkpoint(tmp_path: Path) -> None:
    data = load_data(DATA)
    result = probe_model(tmp_path / "run", untrained(), data, PROBING, progress=False)
    assert result is not None
    assert [r.layer for r in result.readings] == ["input", "conv", "relu", "fc"]
    assert all(r.n == 40 and r.l2 in (1e-1, 1e-3) for r in result.readings)
    assert all(r.gap is not None and 0 <= r.gap < 1e-5 for r in result.readings)
    figures = {file.name for file in (tmp_path / "run" / "figures").iterdir()}
    assert {"probes_optimum_step_00000000.png", "probes_network.png", "probes_network.svg"} <= figures
    with Run(tmp_path / "run") as run:
        assert list(run.probe_results()) == [(0, result)]


def test_the_probe_of_the_input_is_scikit_learns(tmp_path: Path) -> None:
    data, l2 = load_data(DATA), 1e-2
    settings = replace(PROBING, layers=("input",), l2=(l2,))
    result = probe_model(tmp_path, untrained(), data, settings, progress=False)
    x, y = data.train.tensors  # type: ignore[attr-defined]
    test_x, test_y = data.test.tensors  # type: ignore[attr-defined]
    x, test_x = x.flatten(1).double(), test_x.flatten(1).double()
    mean, scale = x.mean(0), x.std(0, correction=0)
    peer = LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10_000)
    peer.fit(((x - mean) / scale).numpy(), y.numpy())
    log_p = peer.predict_log_proba(((test_x - mean) / scale).numpy())
    assert result is not None
    assert result["input"].loss == pytest.approx(-log_p[range(len(test_y)), test_y].mean(), abs=1e-4)


def test_the_same_again_computes_nothing(tmp_path: Path) -> None:
    data, network = load_data(DATA), untrained()
    first = probe_model(tmp_path, network, data, PROBING, progress=False)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "features").rglob("*.npy")}
    assert before
    again = probe_model(tmp_path, network, data, PROBING, progress=False)
    assert first is not None
    assert again is not None
    for one, other in zip(first.readings, again.readings, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-6)  # sums may round as memory is aligned
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "features").rglob("*.npy")} == before


def test_fewer_examples_and_no_features_kept(tmp_path: Path) -> None:
    settings = replace(PROBING, examples=60, keep_features=False)
    result = probe_model(tmp_path, untrained(), load_data(DATA), settings, progress=False)
    assert result is not None
    assert result.references[0].n == 20
    assert not list((tmp_path / "features").rglob("*.npy"))


def test_snapshots(run: Path) -> None:
    results = probe_snapshots(run, PROBING, progress=False)
    with Run(run) as opened:
        assert list(results) == list(opened.snapshots())
        last, weights = list(opened.snapshots().items())[-1]
    network = model(3)
    load_weights(network, weights)
    cold = probe_model(run.with_name("cold"), network, load_data(DATA), PROBING, progress=False)
    assert cold is not None
    for one, other in zip(cold.readings, results[last].readings, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-3)  # both within 1e-6 of the training optimum
    losses = {result["input"].loss for result in results.values()}
    assert max(losses) - min(losses) < 1e-5  # whatever the start, the optimum is the same
    names = {file.name for file in (run / "figures").iterdir()}
    assert {"probes_over_training_heat_map.png", "probes_over_training_curves.png"} <= names


def test_snapshots_that_are_done_are_not_probed_again(run: Path) -> None:
    with Run(run) as opened:
        steps = tuple(opened.snapshots())
    first = probe_snapshots(run, replace(PROBING, steps=steps[:2]), progress=False)
    lines = (run / "results.jsonl").read_text()
    everything = probe_snapshots(run, PROBING, progress=False)
    assert list(everything) == list(steps)
    assert {step: everything[step] for step in first} == first
    assert (run / "results.jsonl").read_text().startswith(lines)


def test_other_settings_are_refused(run: Path) -> None:
    probe_snapshots(run, replace(PROBING, steps=(0,)), progress=False)
    with pytest.raises(AnalysisError, match=r"made with reduce='auto', not 'avg'"):
        probe_snapshots(run, replace(PROBING, reduce="avg"), progress=False)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="is no run of thermoscope train"):
        probe_snapshots(tmp_path, PROBING)


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": untrained().state_dict()}, tmp_path / "w.pt")
    command = ["probe", "--model", "tests.analysis.small:model", "--checkpoint", str(tmp_path / "w.pt"),
               "--data", DATA, "--layers", "input", "relu", "--run", str(tmp_path / "run")]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "relu" in shown
    assert str(tmp_path / "run" / "figures") in shown


def test_the_command_on_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--run", str(run), "--layers", "input", "fc", "--steps", "0"]) == 0
    shown = capsys.readouterr().out
    assert "input" in shown
    assert "probes_over_training" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tests.analysis.small:model"], "--model needs --data"),
        (["--model", "tests.analysis.small:modle", "--data", DATA], "the nearest names are model"),
        (
            ["--model", "tests.analysis.small:model", "--data", DATA, "--checkpoint", "nowhere.pt"],
            "there is no checkpoint 'nowhere.pt'",
        ),
        (
            ["--model", "tests.analysis.small:model", "--data", DATA, "--layers", "covn"],
            "no layer matches 'covn'; the nearest names are conv",
        ),
        (
            ["--model", "tests.analysis.small:model", "--data", DATA, "--published"],
            "no weights are published",
        ),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--run", str(tmp_path / "run"), *options]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
