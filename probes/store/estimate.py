"""The estimate: what an extraction is about to write and how long it will take."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .columns import Column
from .source import Source

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """What an extraction is about to do.

    Attributes:
        rows: rows that are still to be extracted, by all processes.
        bytes: bytes that will be written.
        free: bytes free on the disk.
        seconds: how long it will take, by the first batch.
    """

    rows: int
    bytes: int
    free: int
    seconds: float

    @staticmethod
    def of(
        columns: Sequence[Column],
        source: Source,
        todo: npt.NDArray[np.int64],
        computing: float,
        processes: int,
        store: Path,
    ) -> Estimate:
        """What extracting the batches with these numbers comes to, if one takes so long to compute."""
        workers, loading = source.workers, source.loading
        seconds = max(computing, loading / workers) if workers else computing + loading
        rows = int(source.sizes[todo].sum())
        return Estimate(
            rows,
            rows * sum(column.row_bytes for column in columns),
            shutil.disk_usage(store).free,
            seconds * len(todo) / processes,
        )
