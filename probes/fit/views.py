"""The same features with other labels, or fewer rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .features import ArrayFeatures, FeatureTable

__all__ = ["RowSubset", "stratified_order", "with_labels"]


def with_labels(table: FeatureTable, labels: npt.NDArray[Any]) -> ArrayFeatures:
    """A table's features with another set of labels (n,): what else do these layers know?

    Raises:
        ProbeError: if there is not one whole number per row.
    """
    return ArrayFeatures({layer: table[layer] for layer in table.layers}, labels, table.reductions)


class RowSubset:
    """Some rows of a table, by their numbers, in that order; a layer is copied when it is asked for."""

    def __init__(self, table: FeatureTable, rows: npt.NDArray[np.int64]):
        self._table, self._rows = table, rows
        self.layers, self.reductions = table.layers, table.reductions
        self.n = len(rows)
        self.labels: npt.NDArray[Any] = table.labels[rows]

    def __getitem__(self, layer: str) -> npt.NDArray[Any]:
        """A layer's features of these rows."""
        ascending = np.argsort(self._rows)  # a file is best read in its order
        out = np.empty((self.n, self._table[layer].shape[1]), self._table[layer].dtype)
        out[ascending] = self._table[layer][self._rows[ascending]]
        return out


def stratified_order(labels: npt.NDArray[Any], seed: int) -> npt.NDArray[np.int64]:
    """Row numbers in a random order of which every beginning has the classes in proportion.

    Each class has a row before any class has its second one.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    key = np.empty(len(labels))
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        key[rows] = np.arange(len(rows)) / len(rows)
    order: npt.NDArray[np.int64] = shuffled[np.argsort(key[shuffled], kind="stable")]
    return order
