"""One process at a time works on a run directory, and a dead one locks nobody out."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from analysis import AnalysisError, Run
from analysis.jobs.train import train
from analysis.runs.lock import exclusive
from probes import ProbeResult
from thermoscope.files import HOST, append_line, keep_lines, locked

from .small import SETTINGS
from .test_runs import RESULT

_HOLDER = """
import sys, os, time
from pathlib import Path
from analysis.runs.lock import exclusive
with exclusive(Path(sys.argv[1]), "train"):
    child = os.fork() if sys.argv[2] == "forking" else 0  # as a DataLoader does for its workers
    if not child:  # which has let go of the lock by now
        print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, how: str = "alone") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLDER, str(folder), how]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_told_of_the_first(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    sentence = rf"is in use: process {holder.pid} on {HOST} since .* runs thermoscope train there"
    try:
        with pytest.raises(AnalysisError, match=sentence), exclusive(tmp_path, "train"):
            pass
        with exclusive(tmp_path, "probe"):  # other work goes on beside it
            assert list(Run(tmp_path).records()) == []
    finally:
        end(holder)


def test_two_trainings_in_one_directory_do_not_mix(tmp_path: Path) -> None:
    """Every line was there twice."""
    path = tmp_path / "run"
    holder = hold(path)
    try:
        for resume in (False, True):
            with pytest.raises(AnalysisError, match="is in use"):
                train(SETTINGS, path, resume=resume, progress=False)
        assert [file.name for file in path.iterdir()] == [".train.lock"]
    finally:
        end(holder)


@pytest.mark.parametrize("how", ["alone", "forking"])
def test_a_killed_process_locks_nobody_out(how: str, tmp_path: Path) -> None:
    holder = hold(tmp_path, how)
    holder.kill()  # its child, if any, lives on
    holder.wait()
    try:
        with exclusive(tmp_path, "train"):
            note = json.loads((tmp_path / ".train.lock").read_text())
            assert (note["host"], note["process"]) == (HOST, os.getpid())
    finally:
        end(holder) if how == "forking" else None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "a" / "b", "train"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path / "a" / "b", "train"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_a_thread_that_waited_for_a_deleted_file_does_not_share_the_lock(tmp_path: Path) -> None:
    """Whoever opened the file before it was deleted holds a lock on nothing."""
    inside, most = [0], [0]
    guard = threading.Lock()

    def work() -> None:
        for _ in range(200):
            try:
                with exclusive(tmp_path / "run", "train"):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    with guard:
                        inside[0] -= 1
            except AnalysisError:
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_lock_on_a_deleted_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that had it before deletes the file between our opening and our locking it."""
    file, waited = tmp_path / ".train.lock", []

    def after_the_other(descriptor: int, *, wait: bool) -> bool:
        if not waited:
            file.unlink()
        waited.append(descriptor)
        return locked(descriptor, wait=wait)

    monkeypatch.setattr("analysis.runs.lock.locked", after_the_other)
    with exclusive(tmp_path, "train"):
        assert len(waited) == 2
        assert json.loads(file.read_text())["process"] == os.getpid()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_note_decides(tmp_path: Path) -> None:
    file = tmp_path / ".train.lock"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for host, process, free in (
        (HOST, dead.pid, True),
        (HOST, os.getppid(), False),
        ("elsewhere", dead.pid, False),
    ):
        file.write_text(json.dumps({"host": host, "process": process, "since": "today"}))
        if free:
            with exclusive(tmp_path, "train"):
                assert json.loads(file.read_text())["process"] == os.getpid()
            continue
        sentence = f"process {process} on {host} since today .* if that process is no more, delete .*lock'"
        with pytest.raises(AnalysisError, match=sentence), exclusive(tmp_path, "train"):
            pass
    for nonsense in ("", "[]", '{"host": 3}', "\0\0"):
        file.write_text(nonsense)
        with exclusive(tmp_path, "train"):
            pass
    append_line(tmp_path / "lines", "one", AnalysisError)
    assert (tmp_path / "lines").read_text() == "one\n"


def test_lines_of_many_threads_are_whole_and_none_is_lost_when_the_file_is_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "lines"

    def write(name: int) -> None:
        for number in range(50):
            append_line(path, f"{name}:{number}:" + "x" * 200, AnalysisError)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    path.touch()
    for _ in range(30):  # each time the file is replaced by another
        append_line(path, "not wanted", AnalysisError)
        keep_lines(path, lambda line: not line.startswith(b"not"), AnalysisError)
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    expected = sorted(f"{name}:{number}:" + "x" * 200 for name in range(3) for number in range(50))
    assert sorted(lines) == expected


def test_a_run_can_be_read_and_added_to_while_it_trains(tmp_path: Path) -> None:
    with exclusive(tmp_path, "train"), Run(tmp_path) as run:
        run.log(RESULT, 0)
        with Run(tmp_path) as other:
            assert [logged.step for logged in other.results(ProbeResult)] == [0]
            other.log(RESULT, 1)
        run.log(RESULT, 2)
        assert [logged.step for logged in run.results(ProbeResult)] == [0, 1, 2]
