"""A run directory holds whole files or none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from analysis import AnalysisError, Logged, Run, frame, history
from analysis.results.probes import side_by_side
from probes import ProbeResult, Reading, Reference
from thermoscope.files import HOST, append_line, drop_partial_line, write_atomically

READING = Reading("conv1", "y", "avg:1", 16, 0.03, 100, 500, 0.5, 0.02, 0.2, 0.01, 0.02, 0.005)
RESULT = ProbeResult(
    "valid", (READING, replace(READING, layer="fc", error=0.1)), (Reference("y", 500, 0.9, 0.08, 0.01),)
)


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as run:
        run.log(RESULT, 0)
        run.log(replace(RESULT, split="test"), 7)
        run.log_scalars({"model/train/loss": 0.3}, 7)
    assert list(Run(tmp_path / "run").results(ProbeResult)) == [
        Logged(0, RESULT),
        Logged(7, replace(RESULT, split="test")),
    ]


def test_readings_recorded_before_they_said_whether_they_converged_are_read(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.log(RESULT, 0)
    results = tmp_path / "results.jsonl"
    line = json.loads(results.read_text())
    for reading in line["readings"]:
        for later in ("objective", "converged"):
            assert reading.pop(later) is None
    results.write_text(json.dumps(line) + "\n")
    assert [logged.result for logged in Run(tmp_path).results(ProbeResult)] == [RESULT]


def test_a_line_cut_short_by_a_kill_is_absent(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.log(RESULT, 0)
        run.log(RESULT, 1)
    results = tmp_path / "results.jsonl"
    content = results.read_bytes()
    for cut in (1, 50, len(content) // 2 - 1):
        results.write_bytes(content[:-cut])
        with Run(tmp_path) as run:
            assert [logged.step for logged in run.results(ProbeResult)] == [0]
            run.log(RESULT, 2)
        with Run(tmp_path) as run:
            assert [logged.step for logged in run.results(ProbeResult)] == [0, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.log(RESULT, 0)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write("{nonsense\n")
    with pytest.raises(AnalysisError, match=r"line 2 of .*results.jsonl' is damaged"):
        list(Run(tmp_path).results(ProbeResult))


def test_resuming_forgets_what_will_be_computed_again(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        for step in (0, 5, 10):
            run.log(RESULT, step)
    with Run(tmp_path, resume_at=5) as run:
        assert [logged.step for logged in run.results(ProbeResult)] == [0, 5]


def test_tensorboard_is_told_to_forget_them_too(tmp_path: Path) -> None:
    Run(tmp_path, resume_at=5)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    starts = [event.step for event in EventFileLoader(str(file)).Load() if event.HasField("session_log")]
    assert starts == [6]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old", AnalysisError)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AnalysisError, match="the disk is full"):
        write_atomically(path, b"new", AnalysisError)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    with pytest.raises(AnalysisError, match="the disk is full"):
        append_line(path, "more", AnalysisError)
    assert path.read_bytes() == b"old"


def test_a_full_device_is_one_sentence() -> None:
    with pytest.raises(AnalysisError, match=r"cannot write '/dev/full': the disk is full; .*\.$"):
        append_line(Path("/dev/full"), "x", AnalysisError)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match=r"cannot write .*; choose another folder\.$"):
        Run(tmp_path / "file" / "run")


def test_drop_partial_line_leaves_whole_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n")
    drop_partial_line(path)
    assert path.read_bytes() == b"one\ntwo\n"


def test_snapshots_are_plain_safetensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with Run(tmp_path) as run:
        path = run.snapshot(model, 50, epoch=0.5, loss=1.25)
    assert path.name == "step_00000050.safetensors"
    loaded = safetensors.torch.load_file(path)
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert json.loads(path.with_suffix(".json").read_text()) == {"step": 50, "epoch": 0.5, "loss": 1.25}


def test_frames_hold_every_field(tmp_path: Path) -> None:
    table = frame(RESULT)
    assert list(table["layer"]) == ["conv1", "fc"]
    assert list(table["error"]) == [0.2, 0.1]
    assert list(table["model_error"]) == [0.08, 0.08]
    assert len(history([(0, RESULT), (5, RESULT)])) == 4
    assert history([]).empty


def test_a_table_has_layers_in_order_and_gaps_where_a_layer_is_missing() -> None:
    later = replace(RESULT, readings=(READING, replace(READING, layer="aux"), RESULT.readings[1]))
    table = side_by_side({"before": RESULT, "after": later})
    assert list(table.index) == ["conv1", "aux", "fc"]
    assert table.loc["aux", "before"] == ""
    assert (
        table.loc["fc", "after"] == "10.00 (8.04 to 11.96)"
    )  # by the standard error, as in records of version 0.1
    known = replace(RESULT.readings[1], error=0.0, error_low=0.0, error_high=0.0566)
    exact = replace(RESULT, readings=(known,))
    assert side_by_side({"after": exact}).loc["fc", "after"] == "0.00 (0.00 to 5.66)"
    assert np.array_equal(table["features"], ["16 (avg:1)"] * 3)


def test_files_half_written_by_a_killed_process_are_gone_when_the_run_is_opened(tmp_path: Path) -> None:
    """It was left among the snapshots for ever."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with Run(tmp_path) as run:
        run.log(RESULT, 0)
    folder, old = tmp_path / "snapshots", time.time() - 3 * 86400
    gone = {
        "of a dead process here": folder / f".step_00000001.json.{HOST}.{dead.pid}.partial",
        "of another host, days old": folder / ".step_00000001.json.elsewhere.7.partial",
        "of the version before, days old": folder / f".step_00000003.json.{dead.pid}.partial",
    }
    kept = {
        "of a process that is alive": folder / f".step_00000002.json.{HOST}.{os.getpid()}.partial",
        "of another host, where the process may be alive": folder / f".x.json.elsewhere.{dead.pid}.partial",
        "somebody else's": folder / ".mine.partial",
    }
    for path in (*gone.values(), *kept.values()):
        path.write_text("{")
    for name in ("of another host, days old", "of the version before, days old"):
        os.utime(gone[name], (old, old))
    os.utime(kept["somebody else's"], (old, old))
    Run(tmp_path).close()
    assert not [name for name, path in gone.items() if path.exists()]
    assert not [name for name, path in kept.items() if not path.exists()]
