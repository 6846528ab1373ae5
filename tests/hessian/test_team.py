"""Two processes with half the data each give what one gives with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F

from hessian import Loss, extreme_eigenpairs, line_search

from .cases import CASES

PATIENCE = 120  # seconds until processes that hang are ended

HEAD = """
import sys, torch, torch.distributed as dist, torch.nn.functional as F, numpy as np, os, signal, traceback
from datetime import timedelta
from hessian import Loss, Team, HessianError, extreme_eigenpairs, line_search
from tests.hessian.cases import CASES
torch.set_num_threads(1)
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2,
                        timeout=timedelta(seconds=100))
team = Team()
case = CASES[2]
model = case.model()
batches = [(x[i:i + 1], y[i:i + 1]) for x, y in case.batches() for i in range(len(x))]
if rank:  # the leader's weights count
    for p in model.parameters():
        p.data.mul_(0.5)
"""

WORK = """
loss = Loss(model, F.cross_entropy, team.shard(batches), team=team)
with team.lead(loss) as leading:
    if leading:
        operator = loss.hessian({mode})
        spectrum = extreme_eigenpairs(operator, 4, 2, tol=1e-8)
        gauss_newton = loss.gauss_newton() @ np.ones(loss.size)
        search = line_search(loss, spectrum.smallest[0])
        np.savez(out, values=[p.value for p in spectrum.pairs], product=operator @ np.ones(loss.size),
                 gradient=loss.gradient(), loss=loss.value(), gauss_newton=gauss_newton,
                 losses=search.losses, alphas=search.alphas, examples=loss.examples)
dist.destroy_process_group()
"""


def run(body: str, path: Path) -> list[subprocess.CompletedProcess[str]]:
    """Both ranks, each a process of its own; killed if they hang."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                HEAD + textwrap.dedent(body),
                str(rank),
                f"{path}/store",
                f"{path}/out.npz",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    end = time.monotonic() + PATIENCE
    try:
        ended = [p.communicate(timeout=max(1, end - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [
        subprocess.CompletedProcess([], p.returncode, *outputs)
        for p, outputs in zip(processes, ended, strict=True)
    ]


@pytest.mark.parametrize("mode", ["None", "'reverse_reverse'"])
def test_answers_are_those_of_one_process(mode: str, tmp_path: Path) -> None:
    for process in run(WORK.replace("{mode}", mode), tmp_path):
        assert process.returncode == 0, process.stderr
    case = CASES[2]
    whole = Loss(case.model(), F.cross_entropy, case.batches())
    operator = whole.hessian()
    spectrum = extreme_eigenpairs(operator, 4, 2, tol=1e-8)
    found = np.load(tmp_path / "out.npz")
    assert found["examples"] == 17
    np.testing.assert_allclose(found["loss"], whole.value(), rtol=1e-13)
    np.testing.assert_allclose(found["gradient"], whole.gradient(), atol=1e-14)
    np.testing.assert_allclose(found["product"], operator @ np.ones(whole.size), atol=1e-13)
    np.testing.assert_allclose(found["values"], [p.value for p in spectrum.pairs], atol=1e-9)
    gauss_newton = whole.gauss_newton() @ np.ones(whole.size)
    np.testing.assert_allclose(found["gauss_newton"], gauss_newton, atol=1e-13)
    search = line_search(whole, spectrum.smallest[0])
    at_grid = np.isin(found["alphas"].round(9), search.alphas.round(9))
    assert at_grid.sum() >= 15
    assert search.loss == pytest.approx(float(found["losses"][found["alphas"] == 0][0]), rel=1e-13)


def test_a_process_that_dies_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    body = """
    loss = Loss(model, F.cross_entropy, team.shard(batches), team=team)
    if rank:
        served = loss.gradient
        loss.gradient = lambda: os.kill(os.getpid(), signal.SIGKILL)
    try:
        with team.lead(loss) as leading:
            loss.gradient()
    except HessianError as error:
        print(error)
        os._exit(3)
    """
    leader, killed = run(body, tmp_path)
    assert killed.returncode == -9
    assert leader.returncode == 3, leader.stderr
    assert "another process of the group has died or left" in leader.stdout


def test_a_worker_that_fails_ends_the_leader_too(tmp_path: Path) -> None:
    body = """
    loss = Loss(model, F.cross_entropy, team.shard(batches), team=team)
    if rank:
        def broken(): raise ValueError("no")
        loss.gradient = broken
    try:
        with team.lead(loss) as leading:
            loss.gradient()
    except HessianError as error:
        print(error)
        os._exit(3)
    except ValueError:
        traceback.print_exc()
        os._exit(1)  # an exit by the interpreter would race with the leader's for gloo's threads
    """
    leader, worker = run(body, tmp_path)
    assert worker.returncode == 1
    assert "ValueError: no" in worker.stderr
    assert leader.returncode == 3
    assert "look at its output" in leader.stdout
