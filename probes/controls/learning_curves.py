"""How a layer's error falls with the number of training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from ..fit import FeatureTable, FittedProbes, fit_probes
from ..fit.views import RowSubset, stratified_order

__all__ = ["LearningCurve", "learning_curve"]


@dataclass(frozen=True)
class LearningCurve:
    """Fits to more and more of the same training rows.

    Attributes:
        sizes: training rows.
        fits: one per size.
    """

    sizes: tuple[int, ...]
    fits: tuple[FittedProbes, ...]


def learning_curve(
    *,
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    **fit: Any,
) -> LearningCurve:
    """Fit all layers to nested parts of the training rows, which have the classes in proportion.

    Args:
        train: rows of which the parts are taken.
        valid: chooses the strength of regularisation of each fit, as in `fit_probes`.
        test: only measured.
        sizes: rows of the parts; from all rows down by halves to at least ten per class if not given.
        seed: of the order in which rows join.
        **fit: further arguments of `fit_probes`.

    Raises:
        ProbeError: for a size that is more than all rows.
    """
    if sizes is None:
        least = min(10 * len(np.unique(train.labels)), train.n)
        sizes = [train.n >> k for k in range(train.n.bit_length()) if train.n >> k >= least]
    sizes = [whole_number("sizes", size, least=1) for size in sizes]
    if not sizes:
        raise ProbeError("sizes is empty; give numbers of training rows, or leave it out.")
    seed = whole_number("seed", seed, least=0)
    if max(sizes) > train.n:
        raise ProbeError(f"a learning curve to {max(sizes)} rows needs as many; train has {train.n}.")
    order = stratified_order(train.labels, seed)
    sizes = sorted(sizes)
    fits = [fit_probes(RowSubset(train, order[:n]), valid, test, **fit) for n in sizes]
    return LearningCurve(tuple(sizes), tuple(fits))
