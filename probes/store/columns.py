"""Columns: the arrays of a feature store, each an `.npy` file that any number of processes write."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from thermoscope.errors import ProbeError

from ..digests import array_digest

__all__ = ["Column", "Digest", "file_name", "hexadecimal"]

_WHOLE = 64 * 2**20  # bytes up to which a file is checked whole whenever it is opened
_ROWS = 64  # rows that are checked of a larger one
_CHUNK = 16 * 2**20  # bytes read at a time


def file_name(name: str) -> str:
    """A file name for a layer, on any file system: also one that ignores case or ends names early."""
    safe = quote(name, safe="")
    if safe != safe.lower() or len(safe) > 150:
        safe = f"{safe[:150]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{safe}.npy"


@dataclass(frozen=True)
class Digest:
    """What a column's file must hold: digests of all of it, and of some rows spread over it."""

    whole: str
    sample: str


@dataclass(frozen=True)
class Column:
    """An array (rows, *shape).

    The file has its full size from the beginning and no header until it is complete, so that NumPy refuses it
    till then.
    """

    path: Path
    dtype: str
    rows: int
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def file_bytes(self) -> int:
        """Bytes of the complete file."""
        return len(self._header) + self.rows * self.row_bytes

    @property
    def _header(self) -> bytes:
        header = io.BytesIO()
        described = {
            "descr": np.dtype(self.dtype).newbyteorder("<").str,
            "fortran_order": False,
            "shape": (self.rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()

    def create(self) -> None:
        """Make the file, empty but of its full size; what was there is gone."""
        self.path.unlink(missing_ok=True)
        with self.path.open("wb") as file:
            file.truncate(self.file_bytes)

    def write(self, file: int, first: int, block: npt.NDArray[Any]) -> None:
        """Write rows from number `first` on into an open file."""
        _write_all(
            file, np.ascontiguousarray(block).data.cast("B"), len(self._header) + first * self.row_bytes
        )

    def complete(self) -> None:
        """Give the file, which has all its rows, the header."""
        file = os.open(self.path, os.O_RDWR)
        try:
            _write_all(file, memoryview(self._header), 0)
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> np.memmap[Any, Any]:
        """The array, memory-mapped and read-only.

        Raises:
            ProbeError: if the file is absent, has another size or holds another kind of array.
        """
        self.require_size()
        try:
            array: np.memmap[Any, Any] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self.damaged(f"cannot be read ({error})") from error
        if array.dtype != self.dtype or array.shape != (self.rows, *self.shape):
            raise self.damaged(
                f"holds {array.dtype} of shape {array.shape} instead of {self.dtype} "
                f"of shape {(self.rows, *self.shape)}"
            )
        return array

    def raw(self) -> np.memmap[Any, Any]:
        """The array in a file that may be incomplete."""
        self.require_size()
        shape = (self.rows, *self.shape)
        return np.memmap(self.path, np.dtype(self.dtype), "r", len(self._header), shape)

    def require_size(self) -> None:
        """Refuse a file that is absent or has another size.

        Raises:
            ProbeError: naming the file and what to do.
        """
        if not self.path.exists():
            raise self.damaged("is missing")
        size = self.path.stat().st_size
        if size != self.file_bytes:
            raise self.damaged(f"has {size:,} bytes instead of {self.file_bytes:,}")

    def allocated(self) -> int:
        """Bytes that the file already occupies on the disk."""
        return min(self.file_bytes, 512 * self.path.stat().st_blocks) if self.path.exists() else 0

    def check(self, digest: Digest, *, fully: bool = False) -> None:
        """Refuse a file that holds something else; a large one is compared in some rows unless `fully`.

        Raises:
            ProbeError: naming the file and what to do.
        """
        if fully or self.file_bytes <= _WHOLE:
            is_intact = self._whole() == digest.whole
        else:
            is_intact = self.sample() == digest.sample
        if not is_intact:
            raise self.damaged("does not hold what was written there")

    def damaged(self, problem: str) -> ProbeError:
        """The error for a file that does not fit."""
        folder = self.path.parent
        return ProbeError(
            f"{self.path} {problem}; the store is damaged: delete the folder {folder} and extract again."
        )

    def _whole(self) -> str:
        array, step = self.read(), max(1, _CHUNK // max(1, self.row_bytes))
        parts = (np.arange(i, min(i + step, self.rows)) for i in range(0, self.rows, step))
        return hexadecimal(sum(array_digest(array[p[0] : p[-1] + 1], p) for p in parts))

    def sample(self) -> str:
        """A digest of some rows."""
        numbers = np.unique(np.arange(_ROWS) * (self.rows - 1) // max(1, _ROWS - 1))
        return hexadecimal(array_digest(self.read()[numbers], numbers))


def hexadecimal(digest: int) -> str:
    """16 digits of a digest, or of a sum of digests."""
    return f"{digest % 2**64:016x}"


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written
