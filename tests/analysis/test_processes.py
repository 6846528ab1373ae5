"""`torchrun` with two processes: the README's command line, an error in one of them, and Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import HessianSettings, Run, load_model, measure_hessian
from hessian import LineSearch, Spectrum

from .test_curvature import CONFIG

HOUSE = Path(__file__).parents[2]
PATIENCE = 150  # seconds until processes that hang are ended


def torchrun(*words: str, path: Path) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -- -m thermoscope ...`, on a port of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "--", "-m", "thermoscope", *words],
        env={**os.environ, "PYTHONPATH": f"{HOUSE}:{path}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    with Run(path, CONFIG) as run:
        run.snapshot(load_model(CONFIG["model"], 10), 0)
    return path


def test_two_processes_give_the_digits_of_one(trained: Path, tmp_path: Path) -> None:
    """Eigenvalues to 1e-5 of the width at tol 1e-4, losses to 1e-6: float32, summed in another order."""
    shutil.copytree(trained, tmp_path / "two")
    shutil.copytree(trained, tmp_path / "one")
    options = [
        "--largest",
        "2",
        "--smallest",
        "1",
        "--tol",
        "1e-4",
        "--subset",
        "0.1",
        "--line-searches",
        "1",
    ]
    status, out, err = ended(torchrun("hessian", "--run", str(tmp_path / "two"), *options, path=tmp_path))
    assert status == 0, err
    assert out.count("Extreme eigenvalues of the Hessian") == 1  # by the first process alone
    measure_hessian(
        tmp_path / "one",
        HessianSettings(largest=2, smallest=1, tol=1e-4, subset=0.1, line_searches=1),
        progress=False,
    )
    with Run(tmp_path / "one") as one, Run(tmp_path / "two") as two:
        a, b = one.last(Spectrum)[0], two.last(Spectrum)[0]
        np.testing.assert_allclose(
            [p.value for p in b.pairs], [p.value for p in a.pairs], atol=1e-5 * a.width
        )
        by_one, by_two = (list(run.named(LineSearch).values()) for run in (one, two))
        assert len(by_one) == len(by_two) == 2
        for p, q in zip(by_one, by_two, strict=True):
            assert q.loss == pytest.approx(p.loss, rel=1e-6)
            assert q.examples == p.examples


def test_an_error_in_one_process_is_one_sentence_and_ends_all(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "from tests.analysis.small import small_net\n"
        "def build(num_classes):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise ValueError('no weights on this machine')\n"
        "    return small_net(num_classes)\n"
    )
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace(str(CONFIG["model"]), "fragile:build"))
    status, _, err = ended(torchrun("hessian", "--run", str(path), path=tmp_path))
    assert status != 0
    said = [line for line in err.splitlines() if line.startswith("thermoscope: ")]
    assert len(said) == 1
    assert "no weights on this machine" in said[0]
    before = err[: err.index("torch/distributed/elastic")]  # what follows is torchrun's own report
    assert "Traceback" not in before


@pytest.mark.slow
def test_ctrl_c_is_answered_once(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    options = ["--largest", "40", "--smallest", "40", "--tol", "1e-9", "--subset", "1"]
    process = torchrun("hessian", "--run", str(path), *options, path=tmp_path)
    end = time.monotonic() + PATIENCE
    while not (path / "spectra" / "settings.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(3)
    os.kill(process.pid, signal.SIGINT)
    status, _, err = ended(process)
    assert status != 0
    assert err.count("thermoscope: interrupted; what was finished is kept.") == 1
