"""How much of a probe's success is the probe's: the same probe on random labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from ..fit import FeatureTable, fit_probes, with_labels
from ..fit.views import RowSubset

__all__ = ["Selectivity", "selectivity"]


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
    *,
    train: FeatureTable,
    test: FeatureTable | None = None,
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
    seed = whole_number("seed", seed, least=0)
    groups = np.arange(train.n) if groups is None else np.asarray(groups)
    _require_groups("groups", groups, train)
    if test is not None:
        _require_groups("test_groups", np.asarray(test_groups), test)
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


def _require_groups(name: str, groups: npt.NDArray[Any], table: FeatureTable) -> None:
    if groups.shape != (table.n,):
        raise ProbeError(
            f"{name} has shape {groups.shape}; give the number of each row's group, shape ({table.n},)."
        )
