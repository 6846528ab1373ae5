"""Records: the small JSON files of a feature store, whole or absent, and refused if they were edited."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thermoscope.errors import ProbeError

__all__ = ["checksum", "read_record", "readable_errors", "write_record"]

_FORMAT = 2


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write under a temporary name, flush to disk, and rename."""
    whole = {"format": _FORMAT, **content}
    text = json.dumps({**whole, "sha256": checksum(whole)}, indent=1) + "\n"
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_record(path: Path) -> dict[str, Any] | None:
    """What was written, or None if there is no such file.

    Raises:
        ProbeError: if it is not as it was written, or another version's.
    """
    try:
        content = json.loads(path.read_bytes())
        expected = content.pop("sha256")
        is_intact = checksum(content) == expected
    except FileNotFoundError:
        return None
    # Damage shows as anything: no UTF-8, no JSON, no object, a missing name.
    except Exception:
        is_intact = False
    if not is_intact:
        raise ProbeError(
            f"{path} is damaged or was edited; delete the folder {path.parent} and extract again."
        )
    if content.pop("format") != _FORMAT:
        raise ProbeError(f"{path} was written by another version; extract to another folder.")
    return dict(content)


def checksum(content: Any) -> str:
    """SHA-256 of something that JSON can express."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a sentence about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; make room and make the same call again: it continues where it was"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason = "you have no permission; choose a folder of your own"
        else:
            reason = f"{error.strerror or error}; choose another folder"
        raise ProbeError(f"cannot write {str(path)!r}: {reason}.") from error
