"""Is it the layer, or the probe? Random labels, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ProbeError
from .features import FeatureTable
from .features_views import RowSubset, stratified_order, with_labels
from .fit import fit_probes
from .fit_result import FittedProbes

__all__ = ["LearningCurve", "Selectivity", "learning_curve", "selectivity"]


@dataclass(frozen=True)
class Selectivity:
    """One layer on its task and on a control task.

    Attributes:
        layer: name of the layer.
        n: rows that the errors rest on.
        error: of the probe on the task.
        error_se: its standard error.
        control_error: of a probe fitted to random labels of the same distribution, on random labels.
        control_error_se: its standard error.
        majority_error: of always answering the task's most frequent class.
    """

    layer: str
    n: int
    error: float
    error_se: float
    control_error: float
    control_error_se: float
    majority_error: float

    @property
    def selectivity(self) -> float:
        """How much harder the control is: near zero, the probe would have learnt anything."""
        return self.control_error - self.error

    @property
    def selectivity_se(self) -> float:
        """Its standard error, the two errors taken for independent."""
        return float(np.hypot(self.error_se, self.control_error_se))


def selectivity(
    train: FeatureTable,
    test: FeatureTable | None = None,
    *,
    l2: float,
    groups: npt.NDArray[Any] | None = None,
    test_groups: npt.NDArray[Any] | None = None,
    seed: int = 0,
    **fit: Any,
) -> tuple[Selectivity, ...]:
    """Error on a control task minus error on the task, for every layer (Hewitt & Liang 2019).

    The control gives every group of like rows (all occurrences of a word, say) one random label, so that it
    can be solved only by remembering groups. With `groups`, errors are those on `test`. Without, each row is
    its own group; nothing remembered could help with others, so errors are those on `train`.

    Args:
        train: rows to fit.
        test: rows to measure on, with groups.
        l2: strength of the regularisation, the same for task and control: it decides what can be remembered.
        groups: number of each training row's group, shape (n,).
        test_groups: of each test row.
        seed: of the random labels, whose distribution over groups is that of the training labels over rows.
        **fit: further arguments of `fit_probes`.

    Raises:
        ProbeError: if only one of `test`, `groups` and `test_groups` is missing.
    """
    given = [test is not None, groups is not None, test_groups is not None]
    if any(given) and not all(given):
        raise ProbeError(
            "a control on test rows needs test, groups and test_groups, for it remembers groups; give all "
            "three, or none to compare on the training rows."
        )
    groups = np.arange(train.n) if groups is None else np.asarray(groups)
    names, place = np.unique(groups, return_inverse=True)
    labels = np.random.default_rng(seed).permutation(np.resize(train.labels, len(names)))
    control_test = None
    if test is not None:
        assert test_groups is not None
        known = np.isin(test_groups, names)
        test = RowSubset(test, np.flatnonzero(known))
        of_test = np.searchsorted(names, np.asarray(test_groups)[known])
        control_test = with_labels(test, labels[of_test])
    task = fit_probes(train, None, test, l2=l2, **fit)
    control = fit_probes(with_labels(train, labels[place]), None, control_test, l2=l2, **fit)
    results = task.test or task.train
    others = control.test or control.train
    majority = results.references[0].majority_error
    return tuple(
        Selectivity(a.layer, a.n, a.error, a.error_se, b.error, b.error_se, majority)
        for a, b in zip(results.readings, others.readings, strict=True)
    )


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
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    *,
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
    if max(sizes) > train.n:
        raise ProbeError(f"a learning curve to {max(sizes)} rows needs as many; train has {train.n}.")
    order = stratified_order(train.labels, seed)
    sizes = sorted(sizes)
    fits = [fit_probes(RowSubset(train, order[:n]), valid, test, **fit) for n in sizes]
    return LearningCurve(tuple(sizes), tuple(fits))
