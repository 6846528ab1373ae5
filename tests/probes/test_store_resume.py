"""A store whose extraction was killed, interrupted or shared ends with the same bytes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from probes import FeatureStore, ProbeError
from probes.store import writer
from probes.store.job import Lock

from .models import seed_everything
from .test_distributed import in_two_processes
from .test_store import contents, convnet, data, extract

LAYERS = ["relu_1", "add", "fc"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forked processes cannot use their parent's pool of threads; and progress is noted often."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(writer, "_INTERVAL", 0.0)
    monkeypatch.setattr(writer, "_PATIENCE", 0.0)
    yield
    torch.set_num_threads(threads)


class Slow(Dataset[Any]):
    """Counts what it gives, and takes its time."""

    def __init__(self, seconds: float = 0.0, fail_at: int | None = None, error: Any = RuntimeError):
        self.seconds, self.fail_at, self.error = seconds, fail_at, error
        self.given: list[int] = []
        self.data = data()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        if i == self.fail_at:
            raise self.error("stop")
        time.sleep(self.seconds)
        self.given.append(i)
        return self.data[i]


def run(path: Path, dataset: Slow | None = None, layers: list[str] = LAYERS, batch: int = 4) -> FeatureStore:
    return extract(path, source=DataLoader(dataset or Slow(), batch), layers=layers)


def in_child(work: Callable[[], Any]) -> int:
    """The id of a process that does something and then ends."""
    if child := os.fork():
        return child
    with suppress(BaseException):
        work()
        os._exit(0)
    os._exit(1)


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    run(tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


def test_killed_at_twenty_random_moments(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    generator = random.Random(0)
    begin = time.monotonic()
    os.waitpid(in_child(lambda: run(tmp_path / "timed", Slow(0.002))), 0)
    duration = time.monotonic() - begin
    caught = tried = 0
    while caught < 20:
        folder = tmp_path / str(tried)
        child = in_child(lambda folder=folder: run(folder, Slow(0.002)))
        time.sleep(generator.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            caught += 1
        else:
            duration *= 0.9  # the one that was timed may have had to wait for the processor
        tried += 1
        if not any((folder / "store").glob("*/manifest.json")):
            with pytest.raises(ProbeError, match=r"unfinished|does not exist"):
                FeatureStore.open(folder / "store")
        run(folder)
        assert contents(folder) == undisturbed, tried
        assert tried < 100, "too few were killed while they worked"


def test_killed_before_every_change_of_the_disk(tmp_path: Path) -> None:
    """And every fourth time once more while resuming."""
    calls = 0

    def killing(name: str, last: int) -> None:
        original = getattr(os, name)

        def patched(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(os, name, patched)

    def work(folder: Path, last: int) -> None:
        for name in ("pwrite", "fsync", "replace", "unlink", "mkdir", "open"):
            killing(name, last)
        run(folder, batch=50)

    run(tmp_path / "undisturbed", batch=50)
    undisturbed = contents(tmp_path / "undisturbed")
    last, was_killed = 0, True
    while was_killed:
        folder = tmp_path / str(last)
        _, status = os.waitpid(in_child(lambda folder=folder, last=last: work(folder, last)), 0)
        was_killed = os.WIFSIGNALED(status)
        if last % 4 == 0:
            os.waitpid(in_child(lambda folder=folder, last=last: work(folder, last // 2)), 0)
        run(folder, batch=50)
        assert contents(folder) == undisturbed, last
        last += 1
    assert last > 50, "this shows little"


def test_what_was_done_is_not_done_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for fail_at, error in ((20, RuntimeError), (41, KeyboardInterrupt)):
        with pytest.raises(error):
            run(tmp_path / "1", Slow(fail_at=fail_at, error=error))
    rest = Slow()
    run(tmp_path / "1", rest)
    assert rest.given == [*range(4), *range(4), *range(40, 50)]  # the first batch twice, to see that it stays
    assert contents(tmp_path / "1") == undisturbed


def test_killed_while_layers_are_added(tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        run(tmp_path / folder, layers=["fc"])
    run(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        run(tmp_path / "killed", Slow(fail_at=30))
    opened = FeatureStore.open(tmp_path / "killed" / "store")
    assert opened.layers == ("fc",), "what was whole stays so"
    with pytest.raises(ProbeError, match=r"unfinished in .*; finish it with the call that began it"):
        run(tmp_path / "killed", layers=["conv1"])
    run(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_data_or_batches_do_not_continue_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path, Slow(fail_at=30))
    before = contents(tmp_path)
    with pytest.raises(ProbeError, match="unfinished in"):
        extract(tmp_path, source=DataLoader(Slow(), 5), layers=LAYERS)
    with pytest.raises(ProbeError, match="the inputs of row 0 differ"):
        extract(tmp_path, source=DataLoader(data(seed=1), 4), layers=LAYERS)
    with pytest.raises(ProbeError, match=r"the first extraction to .* is unfinished"):
        extract(tmp_path, convnet(1), DataLoader(Slow(), 4), layers=LAYERS)
    assert contents(tmp_path) == before


def test_a_damaged_unfinished_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        run(tmp_path, Slow(fail_at=30))
    (path,) = tmp_path.rglob("add.npy")
    with pytest.raises(ValueError, match="pickled"):
        np.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ProbeError, match=r"add\.npy has .* bytes instead of"):
        run(tmp_path)


def test_two_calls_at_once(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "store")
    lock.acquire()
    with pytest.raises(ProbeError, match="another process is extracting"):
        run(tmp_path)
    lock.release()
    run(tmp_path)


def shared(rank: int, path: str) -> dict[str, Any]:
    writer._INTERVAL = 0.0
    seed_everything(rank)
    store = run(Path(path) / "shared")
    refused = ""
    try:
        extract(Path(path) / "different", convnet(rank), layers=LAYERS)
    except ProbeError as error:
        refused = str(error)
    with suppress(RuntimeError):
        run(Path(path) / "broken", Slow(fail_at=30))
    return {"layers": store.layers, "refused": refused}


def test_two_processes_give_the_same_bytes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for found in in_two_processes(shared, tmp_path, str(tmp_path)):
        assert found["layers"] == tuple(LAYERS)
        assert "different models, data or layers" in found["refused"]
    assert contents(tmp_path / "shared") == undisturbed
    rest = Slow()
    run(tmp_path / "broken", rest)
    assert contents(tmp_path / "broken") == undisturbed
    assert len(rest.given) < 50, "nothing was kept"


def test_processes_that_do_not_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProbeError, match="init_process_group"):
        run(tmp_path)
