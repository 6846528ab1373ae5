"""Images and class numbers in arrays: what dtypes and shapes make certain, and a sentence for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from thermoscope.errors import AnalysisError

__all__ = ["ArrayImages", "class_numbers", "require_images"]

_MOST_CLASSES = 10**6
_MOST_CHANNELS = 4  # in the second place they speak for (n, channels, height, width)


class ArrayImages(Dataset[Any]):
    """Arrays of images, turned into tensors one by one.

    Args:
        x: images that `require_images` has seen.
        y: class numbers, int64 (n,).
        transform: from an image (H, W) or (H, W, C) to a tensor.
    """

    def __init__(
        self, x: npt.NDArray[Any], y: npt.NDArray[np.int64], transform: Callable[[Any], torch.Tensor]
    ):
        if len(x) != len(y):
            raise AnalysisError(f"there are {len(x)} images but {len(y)} labels.")
        self._x, self.targets, self._transform = x, y, transform

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self._transform(np.ascontiguousarray(self._x[i])), int(self.targets[i])


def require_images(x: npt.NDArray[Any], name: str, *, in_unit: bool) -> npt.NDArray[Any]:
    """Images whose numbers mean something: uint8 from 0 to 255, booleans, or finite floats as they are.

    Args:
        x: an array (n, H, W) or (n, H, W, C).
        name: of the array.
        in_unit: whether a mean and standard deviation of values in 0..1 will be applied.

    Returns:
        The same numbers; uint8 ones as they are, others as float32.

    Raises:
        AnalysisError: naming the array and what to store instead.
    """
    if x.ndim not in (3, 4) or not x.size:
        raise AnalysisError(
            f"{name} has shape {x.shape}; images are (n, height, width) or (n, height, width, channels), at "
            "least one of them."
        )
    if x.ndim == 4 and x.shape[1] <= _MOST_CHANNELS < x.shape[3]:
        raise AnalysisError(
            f"{name} has shape {x.shape}, which looks like channels first; images are (n, height, width, "
            f"channels): save np.moveaxis({name}, 1, -1)."
        )
    if x.dtype == np.uint8:
        return x
    if not (np.issubdtype(x.dtype, np.floating) or x.dtype == np.bool_):
        shown = "" if x.dtype.kind not in "iu" else f" with values from {x.min()} to {x.max()}"
        raise AnalysisError(
            f"{name} is {x.dtype}{shown}, so its scale is not known; save images as uint8 from 0 to 255, or "
            "as float32 in the scale that the model wants."
        )
    finite = np.isfinite(x).reshape(len(x), -1).all(1)
    if not finite.all():
        raise AnalysisError(
            f"image {np.argmin(finite)} of {name} holds NaN or infinite values; leave it out, or repair it."
        )
    if in_unit and not 0 <= float(x.min()) <= float(x.max()) <= 1:
        raise AnalysisError(
            f"{name} has values from {x.min():.4g} to {x.max():.4g}, and the mean and standard deviation are "
            "those of values in 0..1; save images as uint8, or as floats in 0..1."
        )
    with np.errstate(over="ignore"):
        small = x.astype(np.float32)
    if not np.isfinite(small).all():
        raise AnalysisError(f"{name} has values beyond float32's; scale them.")
    return small


def class_numbers(y: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    """Labels as class numbers (n,): whole numbers, also of another type, in a column, or one-hot.

    Raises:
        AnalysisError: naming the array and what to store instead.
    """
    if y.dtype.kind in "USO":
        raise AnalysisError(
            f"{name} holds text; number the classes from 0, as np.unique(..., return_inverse=True) does."
        )
    if y.dtype.kind not in "iufb":
        raise AnalysisError(f"{name} is {y.dtype}; labels are class numbers from 0.")
    if y.ndim == 2 and y.shape[1] > 1 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        numbers: npt.NDArray[np.int64] = y.argmax(1)
        return numbers
    column = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if column.ndim != 1 or not len(column):
        raise AnalysisError(
            f"{name} has shape {y.shape}; labels are one class number per image, or one-hot rows."
        )
    with np.errstate(invalid="ignore"):
        numbers = column.astype(np.int64)
    odd = (numbers != column) | (numbers < 0)  # NaN is equal to nothing
    if odd.any():
        raise AnalysisError(
            f"{name} has the label {column[np.argmax(odd)]} in row {np.argmax(odd)}; classes are numbered 0, "
            "1, 2, ..."
        )
    if numbers.max() >= _MOST_CLASSES:
        raise AnalysisError(f"{name} has the label {numbers.max()}; number the classes from 0.")
    return numbers
