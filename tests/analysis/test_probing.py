"""Probing a checkpoint, and the snapshots of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from analysis import AnalysisError, Controls, Logged, Run, load_data
from analysis.commands import parser
from analysis.commands.probe import _settings
from analysis.jobs.probe import probe_model, probe_snapshots
from analysis.jobs.settings import CONTROLS, ProbeSettings
from analysis.jobs.train import train
from analysis.runs.records import RunRecords
from analysis.sources.weights import load_weights
from probes import (
    ArrayFeatures,
    FeatureStore,
    ProbeResult,
    code_length,
    nearest_neighbours,
    ridge,
    selectivity,
)
from thermoscope.command import main

from .small import SETTINGS, data_with_two_labels, model

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
        assert list(run.results(ProbeResult)) == [Logged(0, result)]


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
    with pytest.raises(AnalysisError, match=r"made with early_stopping=False, not True"):
        probe_snapshots(run, replace(PROBING, early_stopping=True), progress=False)
    assert list(probe_snapshots(run, replace(PROBING, steps=(0,)), progress=False)) == [0]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="is no run of thermoscope train"):
        probe_snapshots(tmp_path, PROBING)


# -- controls, label sets, processes ---------------------------------------------------------------------


def test_controls_are_those_of_the_instrument_and_read_back(tmp_path: Path) -> None:
    settings = replace(PROBING, layers=("input", "fc"), controls=CONTROLS)
    result = probe_model(tmp_path, untrained(), load_data(DATA), settings, progress=False)
    assert result is not None
    controls = RunRecords(tmp_path).last(Controls)[0]
    assert all(control in controls for control in CONTROLS)
    train, valid, test = (
        FeatureStore.open(tmp_path / "features" / split) for split in ("train", "valid", "test")
    )
    assert controls.neighbours == nearest_neighbours(train=train, test=test, num_classes=3, progress=False)
    assert controls.ridge == ridge(train=train, valid=valid, test=test, num_classes=3, progress=False)["test"]
    assert controls.code is not None
    assert [one.bits for one in controls.code] == pytest.approx(
        [one.bits for one in code_length(train=train, num_classes=3, progress=False)], rel=1e-5
    )
    for one, reading in zip(controls.random_labels or (), result.readings, strict=True):
        assert one.layer == reading.layer
        assert reading.l2 is not None
        same = ArrayFeatures({one.layer: train[one.layer]}, train.labels)
        (again,) = selectivity(train=same, l2=reading.l2, num_classes=3, progress=False)
        assert one.control_error == pytest.approx(again.control_error, abs=0.01)
    assert controls.curve is not None
    whole = controls.curve[train.n]
    assert [r.loss for r in whole.readings] == pytest.approx([r.loss for r in result.readings], abs=1e-4)
    assert min(controls.curve) < 40
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    figures = ("readouts", "random_labels", "code", "curve")
    assert {f"probes_{figure}_step_00000000.png" for figure in figures} <= names


def test_controls_can_be_asked_for_afterwards(run: Path) -> None:
    settings = replace(PROBING, steps=(0,), layers=("fc",))
    probe_snapshots(run, settings, progress=False)
    assert not RunRecords(run).last(Controls)
    probe_snapshots(run, replace(settings, controls=("ridge",)), progress=False)
    assert "ridge" in RunRecords(run).last(Controls)[0]
    lines = (run / "results.jsonl").read_text()
    probe_snapshots(run, replace(settings, controls=("ridge",)), progress=False)
    assert (run / "results.jsonl").read_text() == lines


def test_early_stopped_probes_have_their_own_name(tmp_path: Path) -> None:
    data, settings = load_data(DATA), replace(PROBING, early_stopping=True)
    result = probe_model(tmp_path, untrained(), data, settings, progress=False)
    assert result is not None
    assert result.split == "early_stopped"
    assert (tmp_path / "figures" / "probes_early_stopped_step_00000000.png").exists()


def test_one_of_several_label_sets(tmp_path: Path) -> None:
    data, settings = data_with_two_labels(), replace(PROBING, layers=("input",), l2=(1e-3,))
    other = probe_model(tmp_path, untrained(), data, replace(settings, labels="bright"), progress=False)
    task = probe_model(tmp_path, untrained(), data, replace(settings, labels="task"), progress=False)
    plain = probe_model(tmp_path / "plain", untrained(), load_data(DATA), settings, progress=False)
    assert other is not None
    assert task is not None
    assert plain is not None
    assert {r.target for r in other.readings} == {r.target for r in other.references} == {"bright"}
    assert other["input"].error < task["input"].error  # one pixel decides
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {f"probes_optimum_{name}_step_00000000.png" for name in ("bright", "task")} <= names
    assert task["input"].loss == pytest.approx(plain["input"].loss, abs=1e-5)
    with pytest.raises(AnalysisError, match=r"no label set 'colour': the data have .* bright, task"):
        probe_model(tmp_path, untrained(), data, replace(settings, labels="colour"), progress=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the processes of `torchrun` have, for the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_torchrun_gives_the_store_and_the_readings_of_one_process(run: Path) -> None:
    alone = run.with_name("alone")
    shutil.copytree(run, alone)
    settings = replace(PROBING, layers=("input", "fc"), steps=(0, 5), l2=(1e-2,))
    expected = probe_snapshots(alone, settings, progress=False)
    events = len(list(run.glob("events*")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--",
               "-m", "thermoscope", "probe", "--run", str(run), "--layers", "input", "fc",
               "--steps", "0", "5", "--l2", "0.01", "--batch-size", "16"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert stored(run) == stored(alone)
    assert len(list(run.glob("events*"))) == events + 1  # only the first process writes
    found = {x.step: x.result for x in RunRecords(run).results(ProbeResult) if x.result.split == "optimum"}
    assert list(found) == list(expected)
    for step, result in found.items():
        losses = [reading.loss for reading in result.readings]
        assert losses == pytest.approx([r.loss for r in expected[step].readings], rel=1e-6)


def stored(run: Path) -> dict[str, bytes]:
    folder = run / "features"
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_on_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": untrained().state_dict()}, tmp_path / "w.pt")
    command = ["probe", "--model", "tests.analysis.small:model", "--checkpoint", str(tmp_path / "w.pt"),
               "--data", DATA, "--layers", "input", "relu", "--run", str(tmp_path / "run"),
               "--palette", "colour-blind", "--diodes"]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "relu" in shown.out
    assert str(tmp_path / "run" / "figures") in shown.out
    assert "features of 120 rows: " in shown.err
    assert " GB to write" in shown.err


def test_the_command_with_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["probe", "--model", "tests.analysis.small:model", "--data", DATA, "--layers", "fc", "--run",
               str(tmp_path), "--controls", *CONTROLS]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("selectivity", "bits", "ridge", "neighbours", "training rows"))


def test_the_command_with_controls_of_an_earlier_snapshot(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe_snapshots(run, replace(PROBING, layers=("fc",), l2=(1e-2,), steps=(0, 5)), progress=False)
    command = ["probe", "--run", str(run), "--layers", "fc", "--l2", "0.01", "--steps", "0"]
    assert main([*command, "--controls", "ridge"]) == 0
    assert "ridge" in capsys.readouterr().out


def test_the_command_on_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--run", str(run), "--layers", "input", "fc", "--steps", "0"]) == 0
    shown = capsys.readouterr().out
    assert "input" in shown
    assert "probes_over_training" in shown


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], (("input", "*"), ("flat",), "subset:5")),
        (["--exclude", "*"], (("input", "*"), ("*",), "subset:5")),
        (["--layers", "flat"], (("flat",), (), "subset:5")),
        (["--reduce", "avg"], (("input", "*"), ("flat",), "avg")),
        (["--layers", "auto", "--reduce", "auto"], (("auto",), (), "auto")),
        (["--model", "tests.analysis.small:model", "--data", DATA], (("auto",), (), "auto")),
    ],
)
def test_the_command_probes_what_the_training_did_unless_told_otherwise(
    words: list[str], settings: tuple[object, ...], tmp_path: Path
) -> None:
    """It probed the automatic layers, others than those of the curves beside it."""
    config = {"probe": ["input", "*"], "exclude": ["flat"], "reduce": "subset:5"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    chosen = _settings(parser().parse_args(["probe", "--run", str(tmp_path), *words]))
    assert (chosen.layers, chosen.exclude, chosen.reduce) == settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tests.analysis.small:model"], "--model needs --data"),
        (
            ["--model", "tests.analysis.small:model", "--data", DATA, "--labels", "colour"],
            "there is no label set 'colour': the data have a single one",
        ),
        (
            ["--model", "tests.analysis.small:model", "--data", "tests.analysis.small:data_with_two_labels"],
            "the data have the label sets bright, task; choose with --labels.",
        ),
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
