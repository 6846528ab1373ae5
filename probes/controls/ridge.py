"""Ridge regression: a read-out in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from thermoscope.errors import ProbeError

from ..fit.features import FeatureTable, Rows
from ..fit.strengths import from_strong_to_weak
from ..results import ProbeResult
from .contract import Answer, Readout, read_out

__all__ = ["ridge"]

_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_LARGEST = 16_384  # matrix to factor: 2 GiB in float64


def ridge(
    *,
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    l2: float | Sequence[float] = _STRENGTHS,
    memory: int = 2**32,
    num_classes: int | None = None,
    progress: bool = True,
) -> dict[str, ProbeResult]:
    """Each layer read out by ridge regression of one-hot labels on standardised features, in closed form.

    Minimises 1/n sum_i ||W z_i + b - e_i||^2 + l2 ||W||^2. The loss of a reading is the squared error per
    row, summed over classes; the error is that of the largest output. The strength with the least squared
    error on `valid` is kept.

    Args:
        train: rows to fit.
        valid: chooses among strengths; needed for more than one.
        test: only measured.
        l2: a strength or several.
        memory: bytes for the float32 rows of a layer.
        num_classes: one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Returns:
        Readings by split: `"train"`, and `"valid"` and `"test"` as far as given.

    Raises:
        ProbeError: without validation rows for several strengths, where both features and rows are too many
            for one factorisation, or if the splits do not fit together.
    """
    readout = _Ridge(tuple(from_strong_to_weak(l2, choosable=valid is not None)))
    return read_out(
        readout,
        train=train,
        valid=valid,
        test=test,
        memory=memory,
        num_classes=num_classes,
        progress=progress,
    )


@dataclass(frozen=True)
class _Ridge(Readout):
    """Outputs are linear."""

    strengths: tuple[float, ...]
    name: ClassVar[str] = "ridge"

    def fit(
        self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str
    ) -> Mapping[float | None, Answer]:
        equations = _NormalEquations(rows, labels, num_classes, layer)
        return {l2: partial(_linear, equations.solve(l2)) for l2 in self.strengths}

    def losses(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(y, outputs.shape[1])
        return (outputs - one_hot).square().sum(1)


def _linear(theta: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.addmm(theta[:, -1], z, theta[:, :-1].T)


class _NormalEquations:
    """Normal equations in the features or, where they are more, in the rows; float64."""

    def __init__(self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str):
        self._rows, self._in_rows = rows, rows.size > rows.n
        side = min(rows.size, rows.n)
        if side > _LARGEST:
            raise ProbeError(
                f"layer {layer!r} has {rows.size} features and {rows.n} rows; ridge regression factors a "
                f"matrix of the smaller number, at most {_LARGEST}. Reduce features, or fit fewer rows."
            )
        one_hot = torch.nn.functional.one_hot(labels, num_classes).double()
        self._mean = one_hot.mean(0)
        self._targets = (one_hot - self._mean) / rows.n
        blocks = rows.blocks(torch.float64)
        if self._in_rows:
            z = torch.cat([z for _, z in blocks])
            self._matrix, self._z, self._right = z @ z.T / rows.n, z, self._targets
        else:
            self._matrix = torch.zeros(side, side, dtype=torch.float64)
            self._right = torch.zeros(side, num_classes, dtype=torch.float64)
            for block, z in blocks:
                self._matrix += z.T @ z / rows.n
                self._right += z.T @ self._targets[block]

    def solve(self, l2: float) -> torch.Tensor:
        """[W b] of shape (C, size + 1)."""
        matrix = self._matrix.clone()
        matrix.diagonal().add_(l2)
        solution = torch.cholesky_solve(self._right, torch.linalg.cholesky(matrix))
        weight = self._z.T @ solution if self._in_rows else solution
        return torch.cat([weight.T, self._mean[:, None]], 1)
