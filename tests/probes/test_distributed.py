"""Two processes: DDP trains as without probes; shared probes equal one process on all the batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from probes import ProbeSet

from .models import CLASSES, ConvNet, Mlp, assert_identical, images, random_streams, seed_everything, vectors

PATIENCE = 120  # seconds until processes that hang are ended


def in_two_processes(work: Callable[..., Any], path: Path, *args: Any) -> list[Any]:
    """What `work(rank, *args)` returns in each process."""
    store = f"file://{path / 'store'}"
    context = mp.spawn(_process, (work, store, str(path), args), nprocs=2, join=False)
    end = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "the processes hang"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _process(rank: int, work: Callable[..., Any], store: str, path: str, args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        torch.save(work(rank, *args), f"{path}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def train_ddp(rank: int, ways: list[str]) -> dict[str, Any]:
    """The same training for each way to probe."""
    found = {}
    for way in ways:
        seed_everything()
        torch.manual_seed(rank)  # each process has its own dropout
        model = DistributedDataParallel(ConvNet())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        group = dist.group.WORLD if way == "shared" else None
        probes = None if way == "none" else ProbeSet(model, ["**", "add"], CLASSES, process_group=group)
        losses = []
        for x, y in images(3, 8):
            mine = slice(rank, None, 2)
            loss = F.cross_entropy(model(x[mine]), y[mine])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if probes:
                probes.step(y[mine])
        found[way] = {
            "model": dict(model.module.state_dict()),
            "optimizer": optimizer.state_dict(),
            "losses": losses,
            "streams": random_streams(),
        }
        if probes:
            result = probes.evaluate(images(2, 8), progress=False)
            probes.detach()
            found[way + " probes"] = (probes.state_dict()["bank"]["groups"], [r.n for r in result.readings])
    return found


def test_ddp_training_is_identical(tmp_path: Path) -> None:
    for found in (ranks := in_two_processes(train_ddp, tmp_path, ["none", "own", "shared"])):
        assert_identical(found["own"], found["none"])
        assert_identical(found["shared"], found["none"])
    own, shared = ([found[f"{way} probes"] for found in ranks] for way in ("own", "shared"))
    assert_identical(shared[0], shared[1])  # one set of probes
    with pytest.raises(AssertionError):
        assert_identical(own[0][0], own[1][0])  # two sets, of other examples
    assert set(own[0][1]) == {16}
    assert set(shared[0][1]) == {32}


def probe_shares(rank: int, world: int, shares: list[Any]) -> dict[str, Any]:
    """Probes on the part of each batch that is this process's; in one process on the whole."""
    torch.manual_seed(0)
    model = Mlp()
    probes = ProbeSet(model, ["input", "1"], CLASSES, process_group=dist.group.WORLD if world == 2 else None)
    batches = [(x[mine], y[mine]) for x, y in vectors(6, 41) for mine in [shares[rank]]]
    for x, y in batches:
        model(x)
        probes.step(y)
    result = probes.evaluate(batches[:5], progress=False)
    return {
        "weights": [
            p for g in probes._bank.groups for p in (g.weights[0], g.biases[0], g.mean, g.var, g.score)
        ],
        "readings": torch.tensor(
            [[r.loss, r.loss_se, r.error, r.error_se, r.n] for r in result.readings], dtype=torch.float64
        ),
        "references": torch.tensor(
            [[r.n, r.majority_error, r.model_error, r.model_error_se] for r in result.references],
            dtype=torch.float64,
        ),
    }


def test_a_group_equals_one_process_on_the_union(tmp_path: Path) -> None:
    """Also where the processes have batches of different sizes.

    (41 rows: were a class one in five exactly, its first gradient would be rounding noise, which Adam
    makes a full step of.)
    """
    alone = probe_shares(0, 1, [slice(None)])
    for shared in in_two_processes(probe_shares, tmp_path, 2, [slice(0, 13), slice(13, 41)]):
        for key in ("weights", "readings", "references"):
            torch.testing.assert_close(shared[key], alone[key], rtol=1e-4, atol=1e-5)
