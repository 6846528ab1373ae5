"""One process at a time works on a run directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from thermoscope.errors import AnalysisError
from thermoscope.files import HOST, is_still, locked, readable_errors, runs_here

__all__ = ["exclusive"]

_held: set[int] = set()  # descriptors of this process's locks


@contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Keep other processes from the same work in a folder, until the block ends or the process dies.

    The folder is made if it is not there; one that is still empty at the end goes again. The lock is the
    kernel's (`flock`), so that a killed process locks nobody out, and it reaches other hosts where a network
    file system hands locks on, as NFS does. Where there are no locks, the note in the file decides: it
    names the process and its host. Reading the folder, and other work in it, need no lock.

    Args:
        folder: the run directory.
        work: what is done: train, hessian or probe.

    Raises:
        AnalysisError: if another process does this work here already, or if the folder cannot be written.
    """
    file = folder / f".{work}.lock"
    with readable_errors(folder, AnalysisError):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with readable_errors(file, AnalysisError):
            descriptor = _take(file, work)
        _held.add(descriptor)
        try:
            yield
        finally:
            with suppress(OSError):
                file.unlink()  # before it is let go of: who waits for it looks whether it is still there
            _held.discard(descriptor)
            os.close(descriptor)
    finally:
        with suppress(OSError):  # something stands in it
            for place in made:
                place.rmdir()


def _take(file: Path, work: str) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not locked(descriptor, wait=False):
                _ask_the_note(file, descriptor, work)
            if is_still(file, descriptor):
                note = {"host": HOST, "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(note).encode(), 0)
                return descriptor
            os.close(descriptor)
        except BlockingIOError as error:
            note = _note(descriptor)
            os.close(descriptor)
            raise AnalysisError(_in_use(file, work, note)) from error
        except BaseException:
            os.close(descriptor)
            raise


def _ask_the_note(file: Path, descriptor: int, work: str) -> None:
    """Without locks: refuse while the process that the file names may be alive."""
    note = _note(descriptor)
    if not note:
        return
    if note["host"] != HOST or runs_here(note["process"]):
        remedy = f" (This file system has no locks: if that process is no more, delete {str(file)!r}.)"
        raise AnalysisError(_in_use(file, work, note) + remedy)


def _note(descriptor: int) -> dict[str, Any]:
    """What the file says of its process; nothing if it is not written yet."""
    try:
        note = json.loads(os.pread(descriptor, 1000, 0))
        return {"host": str(note["host"]), "process": int(note["process"]), "since": str(note["since"])}
    except (ValueError, KeyError, TypeError):
        return {}


def _in_use(file: Path, work: str, note: Mapping[str, Any]) -> str:
    who = "process {process} on {host} since {since}".format(**note) if note else "another process"
    return (
        f"{str(file.parent)!r} is in use: {who} runs thermoscope {work} there; wait for its end, or choose "
        "another --run."
    )


def _let_go_in_child() -> None:
    """A worker process that outlives a killed run by a moment must not keep its lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
