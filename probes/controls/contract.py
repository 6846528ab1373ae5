"""The contract of a read-out: another way to read a layer out, in the frame of the probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from tqdm import tqdm

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from ..fit.features import FeatureTable, Rows, Scaling
from ..fit.readings import result
from ..fit.splits import Splits
from ..fit.strengths import require_choosable
from ..mean_se import Tally
from ..results import ProbeResult, Reading

__all__ = ["Answer", "Readout", "read_out"]

Answer: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Readout(ABC):
    """Base class of read-outs; `read_out` takes an instance of any subclass, your own too.

    A subclass is a frozen dataclass, whose fields are its settings, and defines `fit` and `losses`.

    Attributes:
        name: for the progress bar.
        dtype: of the features that `fit`'s answers are given, float32 or float64.
        measures_train: whether its error on the rows that it was fitted to means anything.
    """

    name: ClassVar[str] = "read-out"
    dtype: ClassVar[torch.dtype] = torch.float64
    measures_train: ClassVar[bool] = True

    @abstractmethod
    def fit(
        self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str
    ) -> Mapping[float | None, Answer]:
        """Learn from the training rows of one layer.

        Args:
            rows: their standardised features; `rows.blocks(dtype)` gives slices and features (n, size).
            labels: class numbers, int64 (rows,).
            num_classes: C.
            layer: its name, for errors.

        Returns:
            By strength of regularisation (None if there is no such thing): a function from standardised
            features (n, size) to outputs (n, C), of which the largest is the answer. Of several the one with
            the least mean loss on the validation rows is kept.
        """

    @abstractmethod
    def losses(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Loss of each row (n,), of outputs (n, C) and class numbers (n,)."""


@torch.no_grad()
def read_out(
    readout: Readout,
    *,
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    memory: int = 2**32,
    num_classes: int | None = None,
    progress: bool = True,
) -> dict[str, ProbeResult]:
    """Read each layer out in this way.

    Args:
        readout: how.
        train: rows to fit.
        valid: chooses among strengths; needed for more than one.
        test: only measured.
        memory: bytes for the training rows of a layer; if they need more, they are read anew in each pass.
        num_classes: C; one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Returns:
        Readings by split: `"train"`, and `"valid"` and `"test"` as far as given. Ties rank the lower class
        first.

    Raises:
        ProbeError: without validation rows for several strengths, or if the splits do not fit together.
    """
    memory = whole_number("memory", memory, least=0)
    splits = Splits.of(train, valid, test, num_classes)
    measured = {n: table for n, table in splits.tables.items() if readout.measures_train or n != "train"}
    readings: dict[str, list[Reading]] = {split: [] for split in measured}
    for layer in tqdm(train.layers, desc=readout.name, leave=False, disable=None if progress else True):
        rows = _rows(splits, layer, memory)
        fits = readout.fit(rows["train"], torch.from_numpy(train.labels), splits.num_classes, layer)
        require_choosable(len(fits), valid is not None)
        l2 = next(iter(fits))
        if valid is not None and len(fits) > 1:
            tallies = {l2: _measure(readout, answer, rows["valid"], valid) for l2, answer in fits.items()}
            l2 = min(tallies, key=lambda l2: float(tallies[l2].means()[0][0]))
        for split, table in measured.items():
            tally = _measure(readout, fits[l2], rows[split], table)
            readings[split].append(_reading(table, layer, rows[split].size, tally, l2))
    return {
        split: result(split, table, splits.num_classes, readings[split]) for split, table in measured.items()
    }


def _rows(splits: Splits, layer: str, memory: int) -> dict[str, Rows]:
    """Standardised by the training rows, which alone are held in memory."""
    scaling = Scaling.of(splits.tables["train"][layer], layer)
    out = {}
    for name, table in splits.tables.items():
        matrix = table[layer]
        if matrix.shape[1] != len(scaling.mean):
            raise ProbeError(
                f"layer {layer!r} has {matrix.shape[1]} features in {name} and {len(scaling.mean)} in train; "
                "extract both with the same reduction."
            )
        held = memory if name == "train" else 0
        out[name] = Rows(matrix, scaling, held, torch.device("cpu"), splits.num_classes)
    return out


def _measure(readout: Readout, answer: Answer, rows: Rows, table: FeatureTable) -> Tally:
    """Loss, error and top-5 error of rows; ties rank the lower class first."""
    tally = Tally()
    for block, z in rows.blocks(readout.dtype):
        outputs, y = answer(z), torch.from_numpy(table.labels[block])
        own = outputs.gather(1, y[:, None])
        lower = torch.arange(outputs.shape[1]) < y[:, None]
        rank = ((outputs > own) | ((outputs == own) & lower)).sum(1)
        loss = readout.losses(outputs, y)
        values = torch.stack([loss.double(), (rank >= 1).double(), (rank >= 5).double()])
        tally.add(values[..., None], torch.ones(len(y), 1, dtype=torch.bool))
    return tally


def _reading(table: FeatureTable, layer: str, size: int, tally: Tally, l2: float | None) -> Reading:
    (loss, error, top5), errors = (part.tolist() for part in tally.means())
    low, high = tally.interval(1)
    return Reading(
        layer,
        "y",
        table.reductions[layer],
        size,
        None,
        0,
        table.n,
        loss,
        errors[0],
        error,
        errors[1],
        top5,
        errors[2],
        l2,
        error_low=low,
        error_high=high,
    )
