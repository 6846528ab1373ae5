"""Records: the small JSON files of a feature store, whole or absent, and refused if they were edited."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thermoscope.errors import ProbeError
from thermoscope.files import atomic_file

__all__ = ["checksum", "read_record", "write_record"]

_FORMAT = 2


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record; a reader sees all of it or nothing."""
    whole = {"format": _FORMAT, **content}
    text = json.dumps({**whole, "sha256": checksum(whole)}, indent=1) + "\n"
    with atomic_file(path) as file:
        file.write(text.encode())


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
