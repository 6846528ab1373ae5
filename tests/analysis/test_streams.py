"""The same seed gives the same run, whatever was drawn before, who loads the data, and where it is killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader, TensorDataset

from analysis import AnalysisError, Run
from analysis.jobs.train import _batches, train
from analysis.runs.records import read_config
from analysis.runs.snapshots import training_config, training_data
from analysis.sources.seeded_batches import SeededBatches
from thermoscope.random_state import random_state, restore_random_state, seed_streams

from .odd import Augmented
from .small import SETTINGS, data

AUGMENTED = replace(
    SETTINGS,
    data="tests.analysis.odd:augmented",
    probe=("input",),
    epochs=2,
    fit_epochs=1,
    evaluate="every:11",
    snapshots="every:13",
)


@pytest.fixture(scope="module", autouse=True)
def without_figures() -> Iterator[None]:
    """They take most of the time, and nothing here concerns them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.results.probes.ProbeResults.drawings", lambda *_: ())
        yield


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def outcome(path: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    return list(Run(path).records()), torch.load(path / "resume.pt", weights_only=True)["model"]


def assert_same(path: Path, other: Path) -> None:
    (results, weights), (others, theirs) = outcome(path), outcome(other)
    assert results == others
    assert all(torch.equal(weights[name], tensor) for name, tensor in theirs.items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(AUGMENTED, path, progress=False)
    return path


def test_all_three_streams_are_seeded() -> None:
    seed_streams(5)
    first = drawn()
    seed_streams(5)
    assert drawn() == first
    seed_streams(6)
    assert not any(a == b for a, b in zip(drawn(), first, strict=True))
    torch.manual_seed(5)
    assert float(torch.rand(1)) == first[2]  # a plain seed is torch's own


def test_states_are_put_back() -> None:
    seed_streams(1)
    np.random.randn()  # caches the second of a pair
    state = random_state()
    first = drawn(), np.random.randn()
    restore_random_state(state)
    assert (drawn(), np.random.randn()) == first


def test_a_batch_is_the_same_whoever_asks_for_it_and_when() -> None:
    split = Augmented(data()[0])
    batches = SeededBatches(split, 0, 3)
    seed_streams(1)
    expected = drawn()
    seed_streams(1)
    first = batches.__getitems__([4, 2, 7])
    assert drawn() == expected  # the caller's streams did not move
    batches.__getitems__([1, 2])
    again = batches.__getitems__([4, 2, 7])
    assert all(torch.equal(a, b) and y == z for (a, y), (b, z) in zip(first, again, strict=True))
    others = (
        (SeededBatches(split, 0, 4), [4, 2, 7]),
        (SeededBatches(split, 1, 3), [4, 2, 7]),
        (batches, [4, 2, 8]),
    )
    for other, indices in others:
        assert not torch.equal(other.__getitems__(indices)[0][0], first[0][0])
    noise = {float((x - split._split[i][0]).mean()) for (x, _), i in zip(first, [4, 2, 7], strict=True)}
    assert len(noise) == 3  # examples of a batch differ from one another
    assert len(batches) == 120


def test_every_epoch_has_an_order_of_its_own() -> None:
    orders = [_batches(range(50), AUGMENTED, epoch) for epoch in (0, 1, -1)]
    flat = [[i for batch in order for i in batch] for order in orders]
    assert all(sorted(order) == list(range(50)) for order in flat)
    assert len({tuple(order) for order in flat}) == 3
    assert orders[0] == _batches(range(50), AUGMENTED, 0)
    assert orders[0] != _batches(range(50), replace(AUGMENTED, seed=1), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_with_and_without_workers_give_the_same_batches(workers: int) -> None:
    batches = SeededBatches(Augmented(data()[0]), 0, 0)
    loader = DataLoader(batches, batch_size=50, num_workers=workers, generator=torch.Generator())
    for number, (x, _) in enumerate(loader):
        one_by_one = batches.__getitems__(list(range(50 * number, min(120, 50 * number + 50))))
        assert torch.equal(x, torch.stack([x for x, _ in one_by_one]))


def test_a_data_set_that_reads_whole_batches_is_asked_for_them() -> None:
    class Batched(TensorDataset):
        def __getitem__(self, i: int) -> Any:
            raise AssertionError("one by one")

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(i, -i) for i in indices]

    assert SeededBatches(Batched(torch.zeros(9))).__getitems__([3, 5]) == [(3, -3), (5, -5)]


def test_workers_change_no_result(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    train(replace(AUGMENTED, workers=1), path, progress=False)
    assert_same(path, undisturbed)


def test_what_was_drawn_before_changes_no_result(undisturbed: Path, tmp_path: Path) -> None:
    seed_streams(99)
    train(AUGMENTED, tmp_path / "run", progress=False)
    assert_same(tmp_path / "run", undisturbed)


class _Killed(BaseException):
    pass


def test_a_run_killed_within_an_epoch_of_augmented_data_ends_in_the_same_bits(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def killed_at_16(run: Run, result: Any, step: int, **options: Any) -> None:
        if step == 16:
            raise _Killed
        log(run, result, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", killed_at_16)
        with pytest.raises(_Killed):
            train(AUGMENTED, tmp_path / "run", progress=False)
    assert (
        torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] == 13
    )  # of 8 an epoch; two after an evaluation
    seed_streams(7)
    train(AUGMENTED, tmp_path / "run", resume=True, progress=False)
    assert_same(tmp_path / "run", undisturbed)


def test_data_made_at_random_are_found_again(tmp_path: Path) -> None:
    settings = replace(AUGMENTED, data="tests.analysis.odd:random_data", epochs=1)
    train(settings, tmp_path / "run", progress=False)
    seed_streams(3)
    expected = drawn()
    seed_streams(3)
    training_data(training_config(tmp_path / "run"))
    assert drawn() == expected
    train(settings, tmp_path / "run", resume=True, progress=False)  # refused if the data were others
    with pytest.raises(AnalysisError, match="not those that the run was trained on"):
        training_data({**read_config(tmp_path / "run"), "seed": 1})


# -- the first command fails ---------------------------------------------------------------------------


def test_a_command_that_fails_before_its_first_step_leaves_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left a directory that neither the same command nor another one accepted."""
    path = tmp_path / "run"

    def killed(*_: object, **__: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr("analysis.jobs.train.save_checkpoint", killed)  # after snapshot, results and figure
        with pytest.raises(_Killed):
            train(AUGMENTED, path, progress=False)
    assert not path.exists()


def test_a_command_killed_before_its_first_step_can_be_given_again_with_other_settings(
    undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    other = tmp_path / "other"
    train(replace(AUGMENTED, lr=0.5), other, progress=False)
    path.mkdir()
    (path / "snapshots").mkdir()
    for name in ("config.json", "snapshots/step_00000000.safetensors", "snapshots/step_00000000.json"):
        shutil.copy(other / name, path / name)
    first, *_ = (other / "results.jsonl").read_text().splitlines()
    (path / "results.jsonl").write_text(first + "\n")
    train(AUGMENTED, path, progress=False)
    assert_same(path, undisturbed)
    assert read_config(path)["lr"] == AUGMENTED.lr
    start, expected = (p / "snapshots/step_00000000.safetensors" for p in (path, undisturbed))
    assert safetensors.torch.load_file(start).keys() == safetensors.torch.load_file(expected).keys()
    assert start.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("left", ["results.jsonl", "resume.pt", "snapshots/step_00000001.safetensors"])
def test_what_took_a_step_is_never_begun_anew(left: str, undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / "snapshots").mkdir(parents=True)
    shutil.copy(undisturbed / "config.json", path)
    if left.startswith("snapshots"):
        (path / left).write_bytes(b"")
    else:
        shutil.copy(undisturbed / left, path / left)
    before = (path / left).read_bytes()
    with pytest.raises(AnalysisError, match="holds a run already; add --resume"):
        train(AUGMENTED, path, progress=False)
    assert (path / left).read_bytes() == before
