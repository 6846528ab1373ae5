"""Every line of the README that can be typed is typed, on small stand-ins for its models and data."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from analysis import Run
from probes import ProbeResult
from thermoscope.command import main

from .analysis.small import data, residual_net

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

STAND_INS = {
    "--model": "tests.analysis.small:residual_net",
    "--data": "tests.analysis.small:data",
    "--data-dir": ".",
    "--checkpoint": "w.safetensors",
    "--epochs": "1",
    "--largest": "2",
    "--smallest": "1",
}
QUICKER = {
    "demo": (),
    "layers": (),
    "train": ("--fit-epochs", "1", "--batch-size", "60"),
    "probe": ("--l2", "0.1"),
    "hessian": ("--line-searches", "1", "--steps", "2", "--tol", "0.01", "--parameters", "layer1.*"),
}
LAUNCHER = ["torchrun", "--nproc-per-node", "2", "--", "-m", "thermoscope"]


def shell_lines(text: str) -> list[str]:
    """What stands in indented blocks, long lines joined and comments taken off."""
    fenced = re.sub(r"```.*?```", "", text, flags=re.S)
    blocks = re.findall(r"(?:^    \S.*\n(?:^ {4,}.*\n)*)", fenced, flags=re.M)
    joined = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in joined]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.S)


LINES = shell_lines(README)


def command_of(line: str) -> list[str] | None:
    """The words after `thermoscope`, whoever starts it; None if the line is no command of ours."""
    words = shlex.split(line)
    for start in (["thermoscope"], LAUNCHER):
        if words[: len(start)] == start:
            return words[len(start) :]
    return None


COMMANDS = [words for line in LINES if (words := command_of(line)) is not None]


def runnable(words: list[str]) -> list[str]:
    """The same command on small stand-ins; `...` means the words of the first such command."""
    if "..." in words:
        first = next(other for other in COMMANDS if other[0] == words[0] and "..." not in other)
        at = words.index("...")
        words = [words[0], *first[1:], *words[1:at], *words[at + 1 :]]
    replaced = [STAND_INS.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*replaced, *QUICKER[words[0]]] if words[0] != "layers" else words


def test_the_readme_is_read() -> None:
    assert {words[0] for words in COMMANDS} == {"layers", "train", "probe", "hessian"}
    assert any("--resume" in words for words in COMMANDS)
    assert sum(line.startswith("torchrun") for line in LINES) == 2
    assert len(python_blocks(README)) >= 4
    assert shell_lines(
        "text\n\n    one \\\n        --two   # three\n    four\n\n```python\n    five\n```\n"
    ) == [
        "one --two",
        "four",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the commands are typed one after another, as a reader would."""
    here, path = Path.cwd(), tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    safetensors.torch.save_file(residual_net(3).state_dict(), path / "w.safetensors")
    os.chdir(path)
    yield path
    os.chdir(here)


@pytest.mark.parametrize("line", LINES)
def test_a_command_line(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *rest = shlex.split(line)
    words = command_of(line)
    if program == "thermoscope":
        assert words is not None
        assert main(runnable(words)) == 0
        assert len(capsys.readouterr().out.splitlines()) > 5
        if words == ["probe", "--run", "runs/resnet18"]:  # on the layers that it was trained with
            results = [
                x.result for x in Run("runs/resnet18").results(ProbeResult) if x.result.split == "optimum"
            ]
            expected = ["input", "layer1.0.add", "layer2.0.add"]
            assert [[reading.layer for reading in r.readings] for r in results] == [expected] * 3
    elif program == "torchrun":
        assert words is not None
        _run_by_two(runnable(words))
    elif program == "make":
        assert re.search(rf"^{rest[0]}: ", (ROOT / "Makefile").read_text(), re.M)
    else:
        assert (program, rest) == ("tensorboard", ["--logdir", "runs"]), f"no stand-in for: {line}"
        assert list(
            Path("runs").glob("*/events.out.tfevents.*")
        )  # tests/analysis/test_tensorboard.py looks at them


def _run_by_two(words: list[str]) -> None:
    """In a run directory of their own, which one process has not finished already."""
    where = words.index("--run") + 1
    alone = Path(words[where])
    words[where] = f"{alone}-by-two"
    if words[0] == "hessian":
        shutil.copytree(
            alone, words[where], ignore=shutil.ignore_patterns("spectra", "results.jsonl", "features")
        )
    command = [sys.executable, "-m", "torch.distributed.run", *LAUNCHER[1:], *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    records = {path: list(Run(path).records()) for path in (alone, words[where])}
    if words[0] == "probe":
        one, two = ([r for r in found if r["kind"] == "ProbeResult"] for found in records.values())
        assert [r["layer"] for r in one[-1]["readings"]] == [r["layer"] for r in two[-1]["readings"]]
        for a, b in zip(one[-1]["readings"], two[-1]["readings"], strict=True):
            assert a["error"] == b["error"]
    else:
        one, two = (
            [r for r in found if r["kind"] == "Spectrum" and r["step"] == 2] for found in records.values()
        )
        for a, b in zip(one[0]["largest"], two[0]["largest"], strict=False):
            assert a["value"] == pytest.approx(b["value"], rel=0.02)


def test_the_demo(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it trains is given less to do."""
    import analysis.jobs.demo
    from analysis import HessianSettings, TrainSettings, measure_hessian, train

    assert "`thermoscope demo`" in README
    small = TrainSettings(
        STAND_INS["--model"], STAND_INS["--data"], epochs=1, fit_epochs=1, batch_size=60, snapshots="log:1"
    )
    spectra = HessianSettings(largest=1, smallest=1, line_searches=0, steps=(2,), parameters=("fc*",))
    monkeypatch.setattr(analysis.jobs.demo, "demo", lambda path: train(small, path, progress=False))
    monkeypatch.setattr(
        analysis.jobs.demo, "demo_hessian", lambda path: measure_hessian(path, spectra, progress=False)
    )
    Path("runs/demo").mkdir(parents=True)  # of an earlier one
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert "figure: runs/demo-2/figures/" in printed
    assert "Extreme eigenvalues of the Hessian" in printed


def test_programs_named_in_the_text_are_there() -> None:
    for program in re.findall(r"`python (scripts/\S+\.py)", README):
        assert (ROOT / program).is_file()
    for target in re.findall(r"`make ([a-z-]+)", README):
        assert re.search(rf"^{target}: ", (ROOT / "Makefile").read_text(), re.M), target


def test_the_blocks_of_python(place: Path) -> None:
    """In one session after another, as a reader would type them."""
    torch.manual_seed(0)
    train_set, valid_set, test_set = data()
    model = residual_net(3)
    loaders = [DataLoader(split, 30) for split in (train_set, valid_set, test_set)]
    session: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.01),
        "loader": DataLoader(train_set, 30, shuffle=True),
        "step": 4,
        "F": F,
        "train_set": train_set,
        **dict(zip(("train_loader", "valid_loader", "test_loader"), loaders, strict=True)),
    }
    for number, block in enumerate(python_blocks(README), start=1):
        exec(compile(textwrap.dedent(block), f"README.md, block {number}", "exec"), session)
    layers = [reading.layer for reading in session["result"].readings]
    assert {"layer1.0", "layer1.0.add", "layer2.0"} <= set(layers)
    assert all(reading.gap is not None for reading in session["fitted"].test.readings)
    assert (len(session["spectrum"].largest), len(session["spectrum"].smallest)) == (20, 3)
    assert [record["kind"] for record in Run("runs/mine").records()] == [
        "ProbeResult",
        "Spectrum",
        "LineSearch",
    ]


@pytest.mark.parametrize("command", [None, "train", "probe", "hessian"])
def test_examples_of_the_help_texts_can_be_typed(
    command: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    text = re.sub(r"\\\n\s*", "", capsys.readouterr().out.partition("example")[2])
    lines = re.findall(r"^ +thermoscope (.*)$", text, re.M)
    assert lines
    from analysis.commands import parser

    for line in lines:
        parser().parse_args(shlex.split(line)) if "..." not in line else None
