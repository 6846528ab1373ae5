"""Fitted probes on other rows than they were fitted with."""

from __future__ import annotations

import numpy as np
import torch

from thermoscope.errors import ProbeError

from ..results import ProbeResult
from .features import FeatureTable, Rows, Scaling
from .fitted import FittedProbes, LinearClassifier
from .readings import Scores, reading, result, scores
from .splits import require_labels

__all__ = ["evaluate_probes"]


@torch.no_grad()
def evaluate_probes(fitted: FittedProbes, table: FeatureTable, *, split: str = "test") -> ProbeResult:
    """Measure fitted probes on any rows: of another domain, say, or of images made to fool the model.

    Args:
        fitted: from `fit_probes`.
        table: features and labels; all fitted layers must be there.
        split: a name for these rows.

    Raises:
        ProbeError: if a layer is missing or has another size, and for labels that the probes do not know.
    """
    require_labels(split, table.labels)
    missing = [layer for layer in fitted.classifiers if layer not in table.layers]
    if missing:
        raise ProbeError(f"{split} has no features of the fitted layer {missing[0]!r}; extract them.")
    # Of any layer: finite for the classes that were fitted.
    bias = next(iter(fitted.classifiers.values())).bias
    unknown = np.setdiff1d(table.labels, np.flatnonzero(np.isfinite(bias)))
    if len(unknown):
        raise ProbeError(
            f"{split} has rows of class {unknown[0]}, which was not fitted; leave those rows out."
        )
    points = {(point.layer, point.l2): point for point in fitted.path}
    readings = []
    for known in fitted.train.readings:
        found = _scores(fitted.classifiers[known.layer], table, known.layer, split)
        assert known.l2 is not None
        readings.append(reading(table, points[known.layer, known.l2], known.features, found))
    return result(split, table, len(bias), readings)


def _scores(probe: LinearClassifier, table: FeatureTable, layer: str, split: str) -> Scores:
    matrix, size = table[layer], len(probe.mean)
    if matrix.shape[1] != size:
        raise ProbeError(
            f"layer {layer!r} has {matrix.shape[1]} features in {split} and was fitted with {size}; extract "
            "both with the same reduction."
        )
    scaling = Scaling(torch.from_numpy(probe.mean), torch.from_numpy(probe.scale))
    rows = Rows(matrix, scaling, 0, torch.device("cpu"), len(probe.bias))
    return scores(rows, torch.from_numpy(table.labels), torch.from_numpy(np.c_[probe.weight, probe.bias]))
