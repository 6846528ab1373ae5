"""Two processes with half the data each give what one gives with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from hessian import (
    MODES,
    CurvatureMatrix,
    Hessian,
    HessianError,
    LocalLoss,
    Loss,
    Retained,
    Team,
    extreme_eigenpairs,
    line_search,
)

from .cases import CASES, dense

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


# -- the same without processes: what goes over the wire, and who does what -----------------------------

GROUP = object()


class Threads:
    """Stands for torch.distributed: two threads that take turns, and copy where processes would send."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._turn, self._barrier = threading.Lock(), threading.Barrier(2, timeout=30)
        self._sent: dict[int, torch.Tensor] = {}
        self.orders: list[list[int]] = []

    def run(self, body: Callable[[int], Any]) -> list[Any]:
        """What `body(rank)` gives in both threads; an exception of one ends the other."""

        def one(rank: int) -> Any:
            self._own.rank = rank
            with self._turn:
                try:
                    return body(rank)
                except BaseException:
                    self._barrier.abort()
                    raise

        with ThreadPoolExecutor(2) as pool:
            return [future.result() for future in [pool.submit(one, rank) for rank in (0, 1)]]

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()

    def get_rank(self, group: object) -> int:
        assert group is GROUP
        return int(self._own.rank)

    def get_world_size(self, group: object) -> int:
        assert group is GROUP
        return 2

    def get_global_rank(self, group: object, rank: int) -> int:
        assert group is GROUP
        return 10 + rank

    def all_reduce(self, tensor: torch.Tensor, group: object) -> None:
        assert group is GROUP
        self._sent[self._own.rank] = tensor.clone()
        self._meet()
        total = self._sent[0] + self._sent[1]
        self._meet()
        tensor.copy_(total)

    def broadcast(self, tensor: torch.Tensor, source: int, group: object) -> None:
        assert group is GROUP
        assert source == 10
        if self._own.rank == 0:
            self._sent[0] = tensor
            self.orders += [tensor.tolist()] if tensor.dtype == torch.int64 and tensor.shape == (4,) else []
        self._meet()
        sent = self._sent[0]
        assert (tensor.shape, tensor.dtype) == (sent.shape, sent.dtype)
        if self._own.rank:
            tensor.copy_(sent)
        self._meet()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads = Threads()
    monkeypatch.setattr("hessian.distributed.dist", threads)
    monkeypatch.setattr(
        "hessian.empirical_risk.evaluating.sdpa_kernel", lambda _: nullcontext()
    )  # a switch of the whole process
    return threads


def shared_loss(rank: int) -> tuple[Team, Loss]:
    """One example to a batch; other weights than the leader's in the other thread."""
    case, team = CASES[0], Team(GROUP)  # type: ignore[arg-type]
    model = case.model()
    batches = [(x[i : i + 1], y[i : i + 1]) for x, y in case.batches() for i in range(len(x))]
    if rank:
        for p in model.parameters():
            p.data.mul_(0.5)
    return team, Loss(model, F.cross_entropy, team.shard(batches), team=team)


def test_each_process_has_every_second_element(threads: Threads) -> None:
    def body(rank: int) -> tuple[int, int, list[int], list[float]]:
        team = Team(GROUP)  # type: ignore[arg-type]
        data = team.shard(TensorDataset(torch.arange(7.0)))
        return team.rank, team.size, team.shard(list(range(7))), [float(x) for (x,) in data]

    assert threads.run(body) == [(0, 2, [0, 2, 4, 6], [0, 2, 4, 6]), (1, 2, [1, 3, 5], [1, 3, 5])]


def test_every_order_is_carried_out_by_both(threads: Threads) -> None:
    """Losses, gradients and products are those of all the data at the leader's weights."""
    case = CASES[0]
    value, gradient, matrix = dense(case, case.model())
    whole = case.loss()
    vectors = np.random.default_rng(0).standard_normal((whole.size, 3))
    rows, points = vectors.T, np.array([[0.0, 0.1, 0], [0.2, -0.3, 0.4]])

    def body(rank: int) -> float:
        team, loss = shared_loss(rank)
        assert loss.examples == 17
        with team.lead(loss) as leading:
            if leading:
                assert loss.value() == pytest.approx(value, rel=1e-13)
                np.testing.assert_allclose(loss.gradient(), gradient, atol=1e-14)
                np.testing.assert_allclose(loss.along(rows, points), whole.along(rows, points), rtol=1e-12)
                for mode in (Retained(), *MODES[2:]):
                    hessian = loss.hessian(mode)
                    np.testing.assert_allclose(hessian @ vectors, matrix @ vectors, atol=1e-12)
                    sent = [order for order in threads.orders if order[0] == 3]
                    assert sent[-1] == [3, 0, MODES.index(mode), 0]
                gauss_newton = loss.gauss_newton(MODES[2])
                residual = loss.functional_hessian(MODES[2])
                expected = whole.gauss_newton(MODES[2]) @ vectors
                np.testing.assert_allclose(gauss_newton @ vectors, expected, atol=1e-12)
                np.testing.assert_allclose(residual @ vectors, matrix @ vectors - expected, atol=1e-12)
                np.testing.assert_allclose(hessian @ vectors, matrix @ vectors, atol=1e-12)  # still there
        return loss.value()  # a common call again, now with the same weights in both

    assert threads.run(body) == [pytest.approx(value, rel=1e-13)] * 2
    assert {order[0] for order in threads.orders} == set(range(5))


def test_an_operator_that_the_others_have_no_longer_is_refused(threads: Threads) -> None:
    def body(rank: int) -> None:
        team, loss = shared_loss(rank)
        common = loss.hessian(MODES[2])  # made by both, before one leads
        with team.lead(loss) as leading:
            if leading:
                with pytest.raises(HessianError, match="this operator no longer"):
                    _ = common @ np.ones(loss.size)
                old, other, new = (f(MODES[2]) for f in (loss.hessian, loss.gauss_newton, loss.hessian))
                for operator in (new, other):
                    _ = operator @ np.ones(loss.size)
                with pytest.raises(HessianError, match="this operator no longer"):
                    _ = old @ np.ones(loss.size)
        if rank == 0:
            with team.lead(loss), pytest.raises(HessianError, match="this operator no longer"):
                _ = new @ np.ones(loss.size)
        else:
            with team.lead(loss) as leading:
                assert not leading

    threads.run(body)


class Doubled(CurvatureMatrix):
    """2 H, which only its user's own code has."""

    name = "doubled"

    def product(self, loss: LocalLoss, vector: Any) -> Any:
        return {name: 2 * part for name, part in Hessian().product(loss, vector).items()}


def test_a_matrix_of_ones_own_is_shared_once_all_have_met_it(threads: Threads) -> None:
    case = CASES[0]
    _, _, matrix = dense(case, case.model())

    def body(rank: int) -> None:
        team, loss = shared_loss(rank)
        mine, unknown = Doubled(), Doubled()
        loss.operator(mine, MODES[3])
        with team.lead(loss) as leading:
            if leading:
                product = loss.operator(mine, MODES[3]) @ np.eye(loss.size)
                np.testing.assert_allclose(product, 2 * matrix, atol=1e-12)
                with pytest.raises(HessianError, match="the other processes do not know 'doubled'; make"):
                    loss.operator(unknown, MODES[3])

    threads.run(body)


def test_an_exception_of_the_leader_lets_the_others_go(threads: Threads) -> None:
    def body(rank: int) -> str:
        team, loss = shared_loss(rank)
        try:
            with team.lead(loss) as leading:
                if leading:
                    raise ValueError("no")
        except ValueError:
            return "raised"
        return "left"

    assert threads.run(body) == ["raised", "left"]
