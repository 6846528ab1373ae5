"""The reference loop: nothing is lost, and a killed run goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from analysis import AnalysisError, Run
from analysis.jobs.train import TrainSettings, train
from probes import ProbeError, ProbeResult

from .small import SETTINGS


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(SETTINGS, path, progress=False)
    return path


def results(path: Path) -> list[dict[str, object]]:
    return list(Run(path).records())


def assert_same_run(path: Path, other: Path) -> None:
    assert results(path) == results(other)
    snapshots = sorted(p.name for p in (other / "snapshots").iterdir())
    assert sorted(p.name for p in (path / "snapshots").iterdir()) == snapshots
    for name in snapshots:
        assert (path / "snapshots" / name).read_bytes() == (other / "snapshots" / name).read_bytes()
    a, b = (torch.load(p / "resume.pt", weights_only=True) for p in (path, other))
    assert a["step"] == b["step"]
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in b["model"])
    assert torch.equal(a["random"]["torch"], b["random"]["torch"])


def test_a_run_directory_holds_what_the_design_says(undisturbed: Path) -> None:
    config = json.loads((undisturbed / "config.json").read_text())
    assert config["seed"] == 0
    assert {"python", "torch", "torchvision", "timm"} <= config["versions"].keys()
    names = {p.name for p in undisturbed.iterdir()}
    assert {"config.json", "results.jsonl", "snapshots", "figures", "resume.pt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = [(r["step"], r["kind"], r.get("split")) for r in results(undisturbed)]
    assert records[0] == (0, "ProbeResult", "test")
    assert [r for r in records if r[2] == "valid"] == [
        (s, "ProbeResult", "valid") for s in (5, 10, 15, 20, 24)
    ]
    assert records[-1] == (24, "ProbeResult", "test")
    snapshots = {p.stem for p in (undisturbed / "snapshots").glob("*.safetensors")}
    assert snapshots == {"step_00000000", "step_00000001", "step_00000005", "step_00000024"}
    assert not [p for p in undisturbed.rglob("*") if "partial" in p.name]


def test_the_model_is_the_one_trained_without_probes(undisturbed: Path, tmp_path: Path) -> None:
    other = replace(SETTINGS, probe=("conv",), evaluate="none", fit_epochs=1)
    train(other, tmp_path / "run", progress=False)
    name = "snapshots/step_00000024.safetensors"
    a, b = (safetensors.torch.load_file(p / name) for p in (undisturbed, tmp_path / "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_probes_learn_something(undisturbed: Path) -> None:
    tests = [x.result for x in Run(undisturbed).results(ProbeResult) if x.result.split == "test"]
    assert tests[-1]["input"].error < tests[-1].references[0].majority_error


_KILLED = """
import sys
from pathlib import Path
from analysis import train
from tests.analysis.small import SETTINGS
train(SETTINGS, sys.argv[1], resume=Path(sys.argv[1], "config.json").exists(), progress=False)
"""


def test_kill_and_resume_end_as_an_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    kills = 0
    for wait_for in ("config.json", "resume.pt", "snapshots/step_00000005.safetensors"):
        command = [sys.executable, "-c", _KILLED, str(path)]
        process = subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])
        while process.poll() is None and not (path / wait_for).exists():
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        list(Run(path).records())  # readable at any time
    assert kills >= 2
    train(SETTINGS, path, resume=True, progress=False)
    assert_same_run(path, undisturbed)


def test_resuming_a_finished_run_changes_nothing(undisturbed: Path) -> None:
    before = (undisturbed / "results.jsonl").read_bytes()
    first, last = train(SETTINGS, undisturbed, resume=True, progress=False)
    assert (undisturbed / "results.jsonl").read_bytes() == before
    assert (first.split, last.split) == ("test", "test")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_cut_checkpoint_is_refused(undisturbed: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_bytes((undisturbed / "config.json").read_bytes())
    (tmp_path / "resume.pt").write_bytes((undisturbed / "resume.pt").read_bytes()[:size])
    with pytest.raises(AnalysisError, match=r"resume.pt' is damaged; delete it to start this run anew\.$"):
        train(SETTINGS, tmp_path, resume=True, progress=False)


def test_a_checkpoint_with_code_in_it_is_not_run(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((undisturbed / "config.json").read_bytes())
    torch.save({"step": _Poison(tmp_path / "poisoned")}, tmp_path / "resume.pt")
    with pytest.raises(AnalysisError, match="damaged"):
        train(SETTINGS, tmp_path, resume=True, progress=False)
    assert not (tmp_path / "poisoned").exists()


class _Poison:
    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_runs_are_not_mixed(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="holds a run already; add --resume"):
        train(SETTINGS, undisturbed, progress=False)
    with pytest.raises(AnalysisError, match="there is no run in"):
        train(SETTINGS, tmp_path / "nothing", resume=True, progress=False)
    with pytest.raises(AnalysisError, match=r"was started with lr=0.001, not 0.1"):
        train(replace(SETTINGS, lr=0.1), undisturbed, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"probe": ("cnv",)}, "no layer matches 'cnv'; the nearest names are conv"),
        ({"reduce": "avg:x"}, "'avg:x' needs a positive whole number"),
        ({"layout": "NCHW"}, "layout 'NCHW' is none"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; use sgd, adam"),
        ({"evaluate": "often"}, "'often' is no schedule"),
        ({"device": "quantum"}, "there is no device 'quantum' here"),
        ({"model": "torchvision:resnet18"}, r"cannot take images of shape \(1, 6, 6\).*--rgb"),
    ],
)
def test_wrong_settings_are_one_sentence(change: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((AnalysisError, ProbeError), match=sentence) as error:
        train(TrainSettings(**{**asdict(SETTINGS), **change}), tmp_path / "run", progress=False)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
