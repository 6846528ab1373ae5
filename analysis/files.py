"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import AnalysisError

__all__ = ["append_line", "drop_partial_files", "drop_partial_line", "readable_errors", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, and rename: a reader sees all of it or nothing.

    Raises:
        AnalysisError: if the folder cannot be written or the disk is full; what was there remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def drop_partial_files(folder: Path) -> None:
    """Delete what `write_atomically` of a process that is no more left behind."""
    for path in folder.rglob(".*.partial"):
        process = path.name.split(".")[-2]
        if process.isdigit() and not _runs(int(process)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def append_line(path: Path, line: str) -> None:
    """Add a line in one write and flush it to disk; a line that did not fit is taken back.

    Raises:
        AnalysisError: as `write_atomically`.
    """
    with readable_errors(path), path.open("ab") as file:
        start = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)
            raise


def drop_partial_line(path: Path) -> None:
    """Cut off what a killed process left behind the last newline."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; make room and continue with --resume"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason = "you have no permission; choose a folder of your own"
        else:
            reason = f"{error.strerror or error}; choose another folder"
        raise AnalysisError(f"cannot write {str(path)!r}: {reason}.") from error
