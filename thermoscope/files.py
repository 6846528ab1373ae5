"""Files that are whole or absent, and the operating system's refusals as sentences."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

from .errors import ThermoscopeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "HOST",
    "append_bytes",
    "append_line",
    "atomic_file",
    "drop_partial_files",
    "drop_partial_line",
    "is_still",
    "keep_lines",
    "locked",
    "readable_errors",
    "runs_here",
    "write_atomically",
]

HOST = socket.gethostname().replace(".", "-") or "unknown"
Refusal: TypeAlias = type[ThermoscopeError]
"""The caller's kind of error, for what the operating system refuses."""
_FORGOTTEN = 24 * 3600.0  # seconds after which nobody is still writing a file
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is at `path`, whole and on the disk, when the context ends.

    Until then it has a temporary name, so a reader sees all of it or nothing; what was there remains if an
    exception ends the context.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | memoryview, error: Refusal) -> None:
    """Write a file as a whole: a reader sees all of it or nothing.

    Raises:
        error: if the folder cannot be written or the disk is full; what was there remains.
    """
    with readable_errors(path, error), atomic_file(path) as file:
        file.write(content)


def drop_partial_files(folder: Path) -> None:
    """Delete what `atomic_file` left behind of processes that are no more.

    Whether a process of another host is alive cannot be known here: its files go when they are a day old.
    """
    for path in folder.rglob(".*.partial"):
        host, process = ["", *path.name.split(".")][-3:-1]
        if not process.isdecimal():
            continue  # somebody else's
        if not runs_here(int(process)) if host == HOST else _age(path) > _FORGOTTEN:
            path.unlink(missing_ok=True)


def runs_here(process: int) -> bool:
    """Whether a process of this number is alive on this host; True where that cannot be asked."""
    if os.name == "nt":  # there, os.kill(process, 0) is no question but Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # renamed meanwhile
        return 0.0


def locked(descriptor: int, *, wait: bool) -> bool:
    """Take a file's exclusive lock, which the kernel lets go of when the process dies.

    Returns:
        False on a file system, or a system, that has no locks.

    Raises:
        BlockingIOError: if another process holds it and `wait` is False.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise
    return True


def append_line(path: Path, line: str, error: Refusal) -> None:
    """Add a line in one write and flush it to disk; a line that did not fit is taken back.

    Several processes may add lines to the same file: each waits until the other's is there.

    Raises:
        error: as `write_atomically`.
    """
    append_bytes(path, line.encode() + b"\n", error, sync=True)


def append_bytes(path: Path, content: bytes, error: Refusal, *, sync: bool) -> None:
    """Likewise for a file that has no lines, flushed to disk at once or when the system sees fit."""
    with readable_errors(path, error), _waiting_for(path, "a") as file:
        start = os.fstat(file.fileno()).st_size
        try:
            while content:
                content = content[file.write(content) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # a device cannot be cut
                os.truncate(path, start)
            raise


def drop_partial_line(path: Path) -> None:
    """Cut off what a killed process left behind the last newline."""
    if path.exists():
        with _waiting_for(path, "r+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)


def keep_lines(path: Path, wanted: Callable[[bytes], bool], error: Refusal) -> None:
    """Rewrite a file of lines with those that are wanted; it is the old one or the new one, whole.

    Raises:
        error: as `write_atomically`.
    """
    if path.exists():
        with _waiting_for(path, "r+") as file:
            lines = file.readlines()
            kept = [line for line in lines if wanted(line)]
            if len(kept) < len(lines):
                write_atomically(path, b"".join(kept), error)


@contextmanager
def _waiting_for(path: Path, mode: str) -> Iterator[FileIO]:
    """Open a file when no other process is changing it; unbuffered, so that closing it writes nothing."""
    while True:
        with FileIO(path, mode) as file:
            locked(file.fileno(), wait=True)
            if is_still(path, file.fileno()):  # and not replaced while this one waited
                yield file
                return


def is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def readable_errors(path: Path, error: Refusal) -> Iterator[None]:
    """Turn the operating system's refusals into the caller's kind of error, with a sentence about `path`."""
    try:
        yield
    except OSError as refused:
        problem = _in_words(refused, error.going_on)
        raise error(f"cannot write {_shown(path)!r}: {problem}.") from refused


def _shown(path: Path) -> str:
    """The path, or the end of it if it fills a page."""
    return str(path) if len(str(path)) < 300 else f"...{str(path)[-100:]}"


def _in_words(error: OSError, going_on: str) -> str:
    """What the operating system refused, and what can be done about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; make room and {going_on}"
    if error.errno == errno.EFBIG:
        return f"files may not be that large here (ulimit -f); raise the limit and {going_on}"
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long; choose a shorter one"
    if error.errno == errno.ELOOP:
        return "the link leads back to itself; choose another folder"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "you have no permission; choose a folder of your own"
    return f"{error.strerror or error}; choose another folder"
