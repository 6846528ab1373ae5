"""The command line: its answers to the right and the wrong words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thermoscope.command import main

ROOT = Path(__file__).parents[2]
TRAIN = [
    *("train", "--model", "tests.analysis.small:model", "--data", "tests.analysis.small:data"),
    *("--epochs", "1", "--fit-epochs", "1", "--batch-size", "32"),
]


_ERROR = r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)"


def test_train_prints_a_table_and_names_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*TRAIN, "--probe", "input", "conv", "--run", str(run)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^input +36 \(flatten .*\) +{_ERROR} +{_ERROR}$", printed, re.M)
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


LAYERS = ["layers", "--model", "tests.analysis.small:model", "--input", "1x6x6"]


@pytest.mark.parametrize("buffering", [1, -1])  # the error comes from a print, or from the last flush
@pytest.mark.parametrize("words", [LAYERS, ["--help"]])
def test_a_reader_that_goes_away_is_no_error(
    buffering: int, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`| head` ended in a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=buffering) as pipe, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", pipe)
        with contextlib.suppress(SystemExit):  # of --help
            assert main(words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("buffering", [1, -1])
def test_output_that_has_no_room_is_one_sentence(
    buffering: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w", buffering=buffering) as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        assert main(LAYERS) == 1
    said = capsys.readouterr().err
    assert said == "thermoscope: cannot print the results: No space left on device; they are kept.\n"


def test_a_pipe_that_breaks_elsewhere_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a worker process that died; a success without results would be worse than a traceback."""

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("probes.hook_points", broken)
    assert main(LAYERS) == 1
    assert capsys.readouterr().err.startswith("thermoscope: BrokenPipeError: ")


@pytest.mark.parametrize("module", ["torch", "analysis.commands"])
def test_an_interrupt_while_it_starts_is_one_sentence(module: str) -> None:
    """It ended in a page of import statements."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from thermoscope.command import main\n"
        "sys.exit(main(['layers', '--model', 'torchvision:resnet18']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\nthermoscope: interrupted; what was finished is kept.\n"


def test_what_the_users_own_code_raises_is_named_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slip_of_mine.py").write_text(
        "def build():\n    return helper()\n\ndef helper():\n    {}['k']\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["layers", "--model", "slip_of_mine:build"]
    assert main(words) == 1
    place = rf"in {re.escape(str(tmp_path))}/slip_of_mine.py, line 5, helper"
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"thermoscope: KeyError: 'k' \({place}; .*--debug .* traceback\)\.\n", printed)
    for debug in (["--debug", *words], [*words, "--debug"]):
        with pytest.raises(KeyError):
            main(debug)


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
    command = [sys.executable, "-m", "thermoscope", *TRAIN, "--epochs", "2000", "--run", str(run)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
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
