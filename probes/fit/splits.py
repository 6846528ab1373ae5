"""Training, validation and test rows that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from .features import FeatureTable

__all__ = ["Splits", "require_classes", "require_labels"]


@dataclass(frozen=True)
class Splits:
    """Feature tables whose labels were found in order.

    Attributes:
        tables: by name, `"train"` first.
        num_classes: that the labels number.
        present: the classes that the training rows have, ascending.
    """

    tables: Mapping[str, FeatureTable]
    num_classes: int
    present: npt.NDArray[np.int64]

    @classmethod
    def of(
        cls,
        train: FeatureTable,
        valid: FeatureTable | None,
        test: FeatureTable | None,
        num_classes: int | None,
    ) -> Splits:
        """Check labels and layers.

        Raises:
            ProbeError: naming the split and what is wrong with it.
        """
        given = {"train": train, "valid": valid, "test": test}
        tables = {name: table for name, table in given.items() if table is not None}
        for name, table in tables.items():
            if not (hasattr(table, "layers") and hasattr(table, "labels")):
                raise ProbeError(
                    f"{name} is a {type(table).__name__}; give a FeatureStore, or ArrayFeatures."
                )
            if not table.layers:
                raise ProbeError(f"{name} has no layers.")
            require_labels(name, table.labels)
            missing = [layer for layer in train.layers if layer not in table.layers]
            if missing:
                raise ProbeError(
                    f"{name} has no features of layer {missing[0]!r}, which train has; extract them."
                )
        labels = {name: table.labels for name, table in tables.items()}
        num_classes, present = require_classes(labels, num_classes)
        return cls(tables, num_classes, present)

    def classes(self, name: str) -> npt.NDArray[np.int64]:
        """Labels of a split as positions in `present`."""
        return np.searchsorted(self.present, self.tables[name].labels)


def require_classes(
    labels: Mapping[str, npt.NDArray[Any]], num_classes: int | None = None
) -> tuple[int, npt.NDArray[np.int64]]:
    """The number of classes, and those that the training rows have, ascending.

    Args:
        labels: class numbers (n,) by the split's name, those of `"train"` first.
        num_classes: one more than the largest label of `"train"` if not given.

    Raises:
        ProbeError: naming the split and what is wrong with it.
    """
    for name, found in labels.items():
        require_labels(name, found)
    train = labels["train"]
    if num_classes is None:
        num_classes = int(train.max()) + 1
    else:
        num_classes = whole_number("num_classes", num_classes, least=2)
    present = np.unique(train)
    if len(present) < 2:
        raise ProbeError(f"all rows of train have label {present[0]}; a probe needs at least two classes.")
    for name, found in labels.items():
        if found.max() >= num_classes:
            raise ProbeError(
                f"{name} has label {found.max()}, which is out of range: with num_classes={num_classes} "
                f"labels are 0 to {num_classes - 1}."
            )
        unknown = np.setdiff1d(found, present)
        if len(unknown):
            raise ProbeError(
                f"{name} has rows of class {unknown[0]}, which train has none of, so that their loss is "
                "infinite; leave those rows out, or train on rows of every class."
            )
    return num_classes, present


def require_labels(name: str, labels: npt.NDArray[Any]) -> None:
    """Refuse rows without one class number each."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ProbeError(
            f"the labels of {name} are {labels.dtype} of shape {labels.shape}; a classifier needs one class "
            "number per row."
        )
    if not len(labels):
        raise ProbeError(f"{name} has no rows.")
    if labels.min() < 0:
        raise ProbeError(f"{name} has label {labels.min()}, which is no class number; leave those rows out.")
