"""The writer: a thread that puts features on disk while the model computes the next ones, and keeps count.

What is done is noted in a file with a record per batch: the digests of its rows in each column, and a check
of the record itself. A record is written only when its batch is on the disk, so whatever happens, a batch
with a valid record is there. Processes write records of different batches and need not know of each other.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from thermoscope.errors import ProbeError
from thermoscope.files import atomic_file, readable_errors

from ..digests import Digests, array_digest, mixed
from .columns import Column

__all__ = ["Progress", "Stored", "Writer"]

_INTERVAL = 2.0  # seconds after which what was written is flushed and noted
_PATIENCE = 10.0  # or after this many times what that takes
_WAITING = 2  # batches that may wait to be written


class Progress:
    """Which batches are done, in a file of uint64 words (batches, columns + 1)."""

    def __init__(self, path: Path, batches: int, columns: int):
        self.path, self._shape = path, (batches, columns + 1)

    @property
    def exists(self) -> bool:
        """Whether there is such a file."""
        return self.path.exists()

    def create(self) -> None:
        """Begin with nothing done."""
        with atomic_file(self.path) as file:
            file.truncate(8 * self._shape[0] * self._shape[1])

    def digests(self) -> dict[int, Digests]:
        """The digests (columns,) of each batch that is done.

        Raises:
            ProbeError: if the file is not of this shape.
        """
        words = np.fromfile(self.path, np.uint64)
        if words.size != self._shape[0] * self._shape[1]:
            raise ProbeError(
                f"{self.path} is damaged; delete the folder {self.path.parent} and extract again."
            )
        words = words.reshape(self._shape)
        checks = _check(np.arange(len(words)), words[:, :-1])
        return {int(i): words[i, :-1] for i in np.flatnonzero(checks == words[:, -1])}

    def note(self, done: dict[int, Digests]) -> None:
        """Add batches, whose rows must be on the disk."""
        with self.path.open("r+b", buffering=0) as file:
            for number, digests in done.items():
                words = np.append(digests, _check(np.array([number]), digests[None]))
                os.pwrite(file.fileno(), words.tobytes(), number * words.nbytes)
            os.fsync(file.fileno())


def _check(numbers: npt.NDArray[np.int64], digests: Digests) -> Digests:
    check = mixed(numbers.astype(np.uint64) + np.uint64(1))
    for column in digests.T:
        check = mixed(check + column)
    return check


@dataclass(frozen=True)
class Stored:
    """A column that is complete: what would be written is compared with it instead."""

    array: npt.NDArray[Any]
    what: str
    store: Path

    def compare(self, first: int, block: npt.NDArray[Any]) -> None:
        """Refuse rows, from number `first` on, that differ.

        Raises:
            ProbeError: naming the first of them.
        """
        own = self.array[first : first + len(block)]
        if own.shape != block.shape:
            raise ProbeError(
                f"the {self.what} from row {first} on have shape {block.shape}, in the store {self.store} "
                f"{own.shape}: it belongs to other data, so choose another folder."
            )
        same = (own == block).reshape(len(block), -1).all(1)
        if not same.all():
            raise ProbeError(
                f"the {self.what} of row {first + int(np.argmin(same))} differ from those in the store "
                f"{self.store}: it belongs to other data, so choose another folder; or the loader shuffles "
                "or augments, so switch that off."
            )


Block: TypeAlias = "npt.NDArray[Any] | torch.Tensor"


class Writer:
    """A context in which rows go to disk; on leaving, all that was put is there and noted.

    Args:
        columns: what is written, in the order of `progress`: the data's, unless they are stored, and the
        layers.
        layers: names of the layers.
        stored: the data's columns, if they are complete.
        progress: where to note what is done.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        layers: Sequence[str],
        stored: Sequence[Stored],
        progress: Progress,
    ):
        self._columns, self._layers, self._stored, self._progress = columns, layers, stored, progress
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._unnoted: dict[int, Digests] = {}
        self._due = time.monotonic() + _INTERVAL

    def __enter__(self) -> Writer:
        self._files = [os.open(column.path, os.O_RDWR) for column in self._columns]
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._waiting.append(self._thread.submit(self._note))
        self._thread.shutdown()
        for file in self._files:
            os.close(file)
        if kind is None:
            self._wait_for_all_but(0)

    def _wait_for_all_but(self, count: int) -> None:
        while len(self._waiting) > count:
            self._waiting.popleft().result()

    def put(self, number: int, first: int, data: Sequence[Block], layers: Sequence[Block]) -> None:
        """Write batch `number`, whose first row is row `first`, or compare its data with what is stored.

        Raises:
            ProbeError: if an earlier batch could not be written, or must not.
        """
        self._wait_for_all_but(_WAITING)
        blocks = [*data, *layers]
        on_host = [_to_host(block) for block in blocks]
        device = next((b.device for b in blocks if isinstance(b, torch.Tensor) and b.is_cuda), None)
        copied = None if device is None else torch.cuda.current_stream(device).record_event()
        self._waiting.append(self._thread.submit(self._write, number, first, on_host, copied))

    def _write(self, number: int, first: int, blocks: list[Block], copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        arrays = [b.numpy() if isinstance(b, torch.Tensor) else b for b in blocks]
        for stored in self._stored:
            stored.compare(first, arrays.pop(0))
        for name, block in zip(self._layers, arrays[-len(self._layers) :], strict=True):
            _require_finite(name, first, block)
        digests = np.empty(len(self._columns), np.uint64)
        for i, (column, file) in enumerate(zip(self._columns, self._files, strict=True)):
            with readable_errors(column.path, ProbeError):
                column.write(file, first, arrays[i])
            digests[i] = array_digest(arrays[i], np.arange(first, first + len(arrays[i])))
        self._unnoted[number] = digests
        if time.monotonic() >= self._due:
            self._note()

    def _note(self) -> None:
        done, self._unnoted = self._unnoted, {}  # for good: what one fsync has lost, the next does not report
        if not done:
            return
        begin = time.monotonic()
        with readable_errors(self._progress.path, ProbeError):
            for file in self._files:
                os.fsync(file)
            self._progress.note(done)
        end = time.monotonic()
        self._due = end + max(_INTERVAL, _PATIENCE * (end - begin))


def _to_host(block: Block) -> Block:
    if not isinstance(block, torch.Tensor):
        return block
    if not block.is_cuda:
        return block.cpu()
    pinned = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    return pinned.copy_(block, non_blocking=True)  # the computation goes on


def _require_finite(name: str, first: int, block: npt.NDArray[Any]) -> None:
    if np.isfinite(block).all():
        return
    bad = ~np.isfinite(block).all(1)
    row = first + int(np.argmax(bad))
    if block.dtype == np.float16 and not np.isnan(block).any():
        raise ProbeError(
            f"layer {name!r} has numbers beyond float16's {np.finfo(np.float16).max:.0f} in row {row}; use "
            "dtype='float32'."
        )
    raise ProbeError(
        f"layer {name!r} gives NaN or infinite features for row {row}; look at that example and at the "
        "weights, or leave the layer out."
    )
