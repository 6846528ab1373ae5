"""Features of many layers for the same examples, and their standardised rows in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from thermoscope.errors import ProbeError

__all__ = ["ArrayFeatures", "FeatureTable", "Rows", "Scaling"]

_BLOCK = 2**21  # numbers of a block of rows: one that stays in a processor's cache
_MOST_ROWS = 4096


class FeatureTable(Protocol):
    """What a fit reads: one matrix of features per layer, and the labels of its rows."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names in execution order."""

    @property
    def n(self) -> int:
        """Rows of every matrix."""

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Class numbers, shape (n,)."""

    @property
    def reductions(self) -> Mapping[str, str]:
        """How each layer's features were reduced, such as `"avg:1"`."""

    def __getitem__(self, layer: str) -> npt.NDArray[Any]:
        """A layer's features (n, size), float32 or float16, in memory or mapped from a file."""


class ArrayFeatures:
    """A feature table of arrays, for features from anywhere.

    Args:
        features: one matrix (n, size) per layer, in execution order.
        labels: class numbers, shape (n,).
        reductions: how the features were reduced, where that is known.

    Raises:
        ProbeError: if the shapes do not fit, or the labels are no whole numbers.
    """

    def __init__(
        self,
        features: Mapping[str, npt.NDArray[Any]],
        labels: npt.NDArray[Any],
        reductions: Mapping[str, str] | None = None,
    ):
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ProbeError(
                f"labels are {labels.dtype} of shape {labels.shape}; give one whole number per row."
            )
        self._features = {layer: np.asanyarray(matrix) for layer, matrix in features.items()}
        for layer, matrix in self._features.items():
            if matrix.ndim != 2 or len(matrix) != len(labels) or not matrix.shape[1]:
                raise ProbeError(
                    f"the features of layer {layer!r} have shape {matrix.shape}; with {len(labels)} labels "
                    f"they need to be a matrix of {len(labels)} rows, and at least one column."
                )
            if matrix.dtype.kind not in "fiub":
                raise ProbeError(
                    f"the features of layer {layer!r} are {matrix.dtype}; a classifier reads real numbers."
                )
        self.layers = tuple(features)
        self.n = len(labels)
        self.labels: npt.NDArray[np.int64] = labels.astype(np.int64)
        self.reductions: Mapping[str, str] = dict.fromkeys(features, "") | dict(reductions or {})

    def __getitem__(self, layer: str) -> npt.NDArray[Any]:
        """A layer's features (n, size)."""
        return self._features[layer]


class Scaling:
    """Mean and standard deviation of each feature, float64 (size,); a constant feature has scale 1."""

    def __init__(self, mean: torch.Tensor, scale: torch.Tensor):
        self.mean, self.scale = mean, scale

    @classmethod
    def of(cls, matrix: npt.NDArray[Any], layer: str) -> Scaling:
        """Measure a matrix (n, size).

        Raises:
            ProbeError: if it holds NaN or infinite values.
        """
        n, size = matrix.shape
        first = torch.from_numpy(np.array(matrix[0], dtype=np.float64))
        total, square = torch.zeros(2, size, dtype=torch.float64)
        for rows in _slices(n, size):
            x = torch.from_numpy(np.array(matrix[rows], dtype=np.float64)).sub_(first)  # constant: exactly 0
            total += x.sum(0)
            square += x.square_().sum(0)
        mean = total / n
        variance = square / n - mean.square()
        if not bool(variance.isfinite().all()):
            raise ProbeError(
                f"the features of layer {layer!r} hold NaN or infinite values; look for overflow in the "
                "model, or leave the layer out."
            )
        constant = variance <= 1e-14 * square / n
        return cls(first + mean, torch.where(constant, 1.0, variance).sqrt())


class Rows:
    """The standardised rows of one layer, read block by block as often as one likes.

    Args:
        matrix: features (n, size), in memory or mapped from a file.
        scaling: mean and scale to standardise by.
        memory: bytes that the rows may take, in float32 or in that and float64; if they need more, every pass
            reads them anew.
        device: where blocks are wanted.
        widest: columns of what will be computed from a block, which limits its rows.
    """

    def __init__(
        self,
        matrix: npt.NDArray[Any],
        scaling: Scaling,
        memory: int,
        device: torch.device,
        widest: int = 1,
    ):
        self._matrix, self._device = matrix, device
        self.n, self.size = matrix.shape
        self._mean, self._scale = scaling.mean.to(device), scaling.scale.to(device)
        self._slices = _slices(self.n, max(self.size, widest))
        self._held: dict[torch.dtype, torch.Tensor] = {}
        fitting = memory // max(matrix.size, 1)  # bytes for each number
        self._holds = {torch.float32: fitting >= 4, torch.float64: fitting >= 12}  # both, or the smaller

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which rows, and their standardised features; float64 ones are computed from the originals."""
        if self._holds[dtype] and dtype not in self._held:
            held = torch.empty(self._matrix.shape, dtype=dtype, device=self._device)
            for rows in self._slices:
                held[rows] = self._read(rows, dtype)
            self._held[dtype] = held
        for rows in self._slices:
            yield rows, self._held[dtype][rows] if dtype in self._held else self._read(rows, dtype)

    def _read(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        block = self._matrix[rows]
        native = np.array(block, dtype=block.dtype.newbyteorder("="))
        x = torch.from_numpy(native).to(self._device, dtype)
        return x.sub_(self._mean.to(dtype)).div_(self._scale.to(dtype))


def _slices(n: int, width: int) -> list[slice]:
    rows = min(max(_BLOCK // width, 16), _MOST_ROWS)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
