"""Recognition: whether a model still gives the features that are in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from thermoscope.errors import ProbeError

__all__ = ["require_same_features", "tolerance_of"]

_TOLERANCE = 1e-3  # thousands of roundings of float32, or a few of TF32
_HALF_TOLERANCE = 3e-2  # eight roundings of bfloat16
_FLOOR = 0.1  # of the layer's size, for features that are next to nothing


def tolerance_of(model: nn.Module, autocast: torch.dtype | None) -> float:
    """How far features may lie apart that are computed by the same model, relative to their size."""
    dtypes = {autocast, *(parameter.dtype for parameter in model.parameters())}
    return _HALF_TOLERANCE if dtypes & {torch.float16, torch.bfloat16} else _TOLERANCE


def require_same_features(
    layer: str,
    first: int,
    stored: npt.NDArray[Any],
    found: npt.NDArray[Any],
    tolerance: float,
    store: Path,
) -> None:
    """Refuse features (rows, size), from row `first` on, that are not those in the store.

    On the same machine, in the same batches and threads, they are the same bits. Elsewhere each number may
    differ by `tolerance` times the root mean square of its feature and a tenth of the whole layer's.

    Raises:
        ProbeError: naming the layer and the first of the rows.
    """
    if np.array_equal(stored, found):
        return
    stored, found = stored.astype(np.float64), found.astype(np.float64)
    square = np.square(stored).mean(0)
    allowed = tolerance * (np.sqrt(square) + _FLOOR * np.sqrt(square.mean()))
    differs = ~(np.abs(found - stored) <= allowed)  # NaN differs
    if differs.any():
        row, column = np.argwhere(differs)[0]
        raise ProbeError(
            f"the model gives other features of layer {layer!r} than are in the store {store} "
            f"({found[row, column]:.4g} and not {stored[row, column]:.4g} for row {first + row}) though its "
            "weights are the same: a hook, an attribute, a library or forward= has changed; undo that, or "
            "choose another folder."
        )
