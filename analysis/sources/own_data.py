"""Data sets of the user's own: whether they can be asked for examples, and which classes these have."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, Subset, TensorDataset

from thermoscope.errors import AnalysisError

from .arrays import ArrayImages
from .folders import ClassFolders

__all__ = ["count_classes", "known_labels", "require_examples"]

_SPLITS = ("train", "valid", "test")


def known_labels(split: Any) -> npt.NDArray[np.int64] | None:
    """The class numbers (n,) of a data set that can give them without its images; None of another one."""
    if isinstance(split, Subset):
        labels = known_labels(split.dataset)
        return None if labels is None else labels[np.asarray(split.indices, dtype=np.int64)]
    found: Any = None
    if isinstance(split, TensorDataset) and len(split.tensors) == 2:
        found = split.tensors[1]
    elif isinstance(split, (ArrayImages, ClassFolders)) or _is_plain_torchvision(split):
        found = getattr(split, "targets", None)
    if found is None:
        return None
    labels = np.asarray(found)
    return labels.astype(np.int64) if labels.ndim == 1 and labels.dtype.kind in "iub" else None


def require_examples(name: str, parts: Sequence[Any]) -> None:
    """Refuse data sets that are empty, or cannot be asked for their i-th example.

    Raises:
        AnalysisError: naming the split.
    """
    for split, part in zip(_SPLITS, parts, strict=True):
        by_number = hasattr(part, "__len__") and hasattr(part, "__getitem__")
        if not by_number or isinstance(part, IterableDataset):
            raise AnalysisError(
                f"the {split} data of {name!r} are a {type(part).__name__}, which cannot be asked for its "
                "i-th example; return data sets with __len__ and __getitem__."
            )
        if len(part) == 0:
            raise AnalysisError(f"the {split} data of {name!r} are empty.")


def count_classes(name: str, parts: Sequence[Any]) -> int:
    """One more than the largest class number.

    Raises:
        AnalysisError: for labels that are something else, and if there is one class only.
    """
    most = max(
        _class_number(example, i, f"{split} data of {name!r}")
        for split, part in zip(_SPLITS, parts, strict=True)
        for i, example in _examples(part)
    )
    if most == 0:
        raise AnalysisError(f"the data of {name!r} have a single class; a classifier needs at least two.")
    return most + 1


def _is_plain_torchvision(split: Any) -> bool:
    from torchvision.datasets import VisionDataset

    return isinstance(split, VisionDataset) and split.target_transform is None


def _examples(split: Any) -> Iterator[tuple[int, Any]]:
    labels = known_labels(split)
    for i in range(len(split)):
        yield i, (None, labels[i]) if labels is not None else split[i]


def _class_number(example: Any, i: int, where: str) -> int:
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise AnalysisError(f"example {i} of the {where} is no pair (x, y).")
    y = example[1]
    number = y.item() if isinstance(y, (torch.Tensor, np.ndarray)) and y.ndim == 0 else y
    if not isinstance(number, numbers.Integral) or number < 0:
        shown = " ".join(repr(y).split())[:60]
        raise AnalysisError(
            f"example {i} of the {where} has the label {shown}; return a class number, or a DataSplits with "
            "num_classes where labels are something else."
        )
    return int(number)
