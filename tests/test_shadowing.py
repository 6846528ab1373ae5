"""Somebody's own `analysis.py` or `probes/` in the way of ours: one sentence that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "thermoscope", "layers", "--model", "paper:lenet", "--input", "1x28x28")


def run(*words: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([path, str(ROOT)] if path else [str(ROOT)])}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["analysis.py", "probes/__init__.py", "hessian.py"])
@pytest.mark.parametrize("by_path", [False, True])
def test_the_command_names_what_is_in_its_way(tmp_path: Path, name: str, by_path: bool) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine = True\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(*COMMAND, cwd=elsewhere if by_path else tmp_path, path=str(tmp_path) if by_path else "")
    package = name.partition("/")[0].removesuffix(".py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"thermoscope: {file} shadows thermoscope's package {package!r}; rename it, or start from another "
        "folder (and look at PYTHONPATH).\n"
    )


def test_analysis_names_a_shadowed_instrument(tmp_path: Path) -> None:
    (tmp_path / "probes.py").write_text("mine = True\n")
    done = run("-c", "import analysis", cwd=tmp_path)
    assert "probes.py shadows thermoscope's package 'probes'" in done.stderr.splitlines()[-1]


def test_a_folder_that_is_no_package_is_not_in_the_way(tmp_path: Path) -> None:
    for name in ("analysis", "probes", "hessian"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    done = run(*COMMAND, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conv1" in done.stdout


def test_a_users_model_may_stand_beside_files_of_these_names(tmp_path: Path) -> None:
    """The folder is searched for the model only after thermoscope's own packages are there."""
    (tmp_path / "mine.py").write_text("from torch import nn\ndef build(): return nn.Linear(4, 2)\n")
    for name in ("hessian.py", "probes.py"):
        (tmp_path / name).write_text("mine = True\n")
    code = (
        "import sys; sys.path.remove('');"
        "from thermoscope.command import main;"
        "sys.exit(main(['layers', '--model', 'mine:build', '--input', '4']))"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
