"""The command line: its answers to the right and the wrong words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.cli import main

TRAIN = [
    *("train", "--model", "tests.analysis.small:model", "--data", "tests.analysis.small:data"),
    *("--epochs", "1", "--fit-epochs", "1", "--batch-size", "32"),
]


def test_train_prints_a_table_and_names_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*TRAIN, "--probe", "input", "conv", "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^input +36 \(flatten\) +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ± \d+\.\d\d$", printed, re.M)
    assert "always the majority class" in printed
    figure = re.search(r"^figure: (.*)$", printed, re.M)
    assert figure is not None
    assert Path(figure[1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--probe", "cnv"], "no layer matches 'cnv'; the nearest names are conv"),
        (["--probe", "fc.add"], "no layer matches 'fc.add'"),
        (
            ["--model", "torchvision:resnt18"],
            "torchvision has no model 'resnt18'; the nearest names are resnet18",
        ),
        (["--data", "npz:nowhere.npz"], "there is no file 'nowhere.npz'"),
        (["--reduce", "medium"], "unknown reduction 'medium'"),
        (["--snapshots", "daily"], "'daily' is no schedule"),
    ],
)
def test_mistakes_get_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAIN, "--run", str(tmp_path / "run"), *words]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("thermoscope: ")
    assert sentence in printed
    assert printed.count("\n") == 1
    assert "Traceback" not in printed


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no layer matches"):
        main(["--debug", *TRAIN, "--run", str(tmp_path / "run"), "--probe", "cnv"])


@pytest.mark.parametrize("command", [[], ["train"], ["train", "--epochs", "-1"], ["nonsense"]])
def test_missing_words_show_the_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "usage: thermoscope" in capsys.readouterr().err


def test_help_has_examples_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in ([["--help"], "thermoscope demo"], [["train", "--help"], "(default: adam)"]):
        with pytest.raises(SystemExit):
            main(command)
        assert words in capsys.readouterr().out


def test_layers_are_listed_in_execution_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--model", "torchvision:resnet18", "--input", "3x64x64"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    order = [
        "conv1",
        "maxpool",
        "layer1.0.conv1",
        "layer1.0.add",
        "layer1.0.relu_1",
        "layer4.1",
        "flatten",
        "fc",
    ]
    assert [name for name in names if name in order] == order
    assert main(["layers", "--model", "torchvision:resnet18", "--input", "3,64,64"]) == 1
    assert "write it as 3x224x224" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_finished(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "analysis.cli", *TRAIN, "--epochs", "2000", "--run", str(run)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, interrupts are ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 120
    while not (run / "resume.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.rstrip().endswith("thermoscope: interrupted; what was finished is kept.")
    assert "Traceback" not in errors
