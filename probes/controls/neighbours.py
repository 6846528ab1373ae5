"""Nearest neighbours: a read-out that fits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from ..fit.features import FeatureTable, Rows
from ..results import ProbeResult
from .contract import Answer, Readout, read_out

__all__ = ["nearest_neighbours"]


def nearest_neighbours(
    *,
    train: FeatureTable,
    test: FeatureTable,
    k: int = 20,
    memory: int = 2**32,
    num_classes: int | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Each layer read out by the votes of the `k` nearest training rows: nothing is fitted.

    Distance is Euclidean between standardised features. The error is that of the most frequent label (of
    equally frequent ones that of the lower number), the loss that of (votes + 1 / C) / (k + 1), in nats.

    Args:
        train: rows that vote.
        test: rows that are voted on.
        k: neighbours.
        memory: bytes for the training rows of a layer; if they need more, they are read anew for each block
            of test rows.
        num_classes: C; one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Raises:
        ProbeError: if `k` is no number of training rows, or the splits do not fit together.
    """
    k = whole_number("k", k, least=1)
    if k > train.n:
        raise ProbeError(f"k={k}: train has {train.n} rows that can be neighbours.")
    return read_out(
        _Neighbours(k), train=train, test=test, memory=memory, num_classes=num_classes, progress=progress
    )["test"]


@dataclass(frozen=True)
class _Neighbours(Readout):
    """Outputs are votes."""

    k: int
    name: ClassVar[str] = "nearest neighbours"
    dtype: ClassVar[torch.dtype] = torch.float32
    measures_train: ClassVar[bool] = False  # each of these rows is its own neighbour

    def fit(
        self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str
    ) -> Mapping[float | None, Answer]:
        def votes(z: torch.Tensor) -> torch.Tensor:
            nearest = labels[_nearest(rows, z, self.k)]
            found = torch.zeros(len(z), num_classes)
            return found.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=torch.float32))

        return {None: votes}

    def losses(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = (outputs + 1 / outputs.shape[1]) / (self.k + 1)
        return -p.gather(1, y[:, None])[:, 0].log()


def _nearest(known: Rows, z: torch.Tensor, k: int) -> torch.Tensor:
    """Row numbers (rows of z, k) of the nearest known rows."""
    best = torch.empty(len(z), 0)
    rows = torch.empty(len(z), 0, dtype=torch.int64)
    for block, x in known.blocks(torch.float32):
        near = x.square().sum(1) - 2 * z @ x.T  # the distance squared, up to what is the same for all
        number = torch.arange(block.start, block.stop).expand(len(z), -1)
        near, number = torch.cat([best, near], 1), torch.cat([rows, number], 1)
        best, chosen = near.topk(min(k, near.shape[1]), largest=False)
        rows = number.gather(1, chosen)
    return rows
