"""The convex fit: every layer's probe at its optimum, with a certificate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from thermoscope.errors import ProbeError

from ..arguments import positive_number, whole_number
from ..results import Reading
from .features import FeatureTable
from .fitted import FittedProbes
from .layer import LayerFit
from .readings import reading, result
from .splits import Splits
from .strengths import from_strong_to_weak

__all__ = ["fit_probes"]

_PATH = tuple(float(f"{10 ** (-k / 2):.3g}") for k in range(9))  # 1 to 1e-4


@torch.no_grad()
def fit_probes(
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    *,
    l2: float | Sequence[float] | None = None,
    early_stopping: bool = False,
    tol: float = 1e-6,
    max_iter: int = 5000,
    memory: int = 2**32,
    device: torch.device | str | None = None,
    start: FittedProbes | None = None,
    num_classes: int | None = None,
    progress: bool = True,
) -> FittedProbes:
    """Fit a softmax regression to every layer, to a certified optimum.

    The objective is

        F(W, b) = 1/n sum_i CE(y_i, softmax(W z_i + b)) + l2/2 ||W||^2

    with features z standardised by the training rows' mean and standard deviation; the bias is not
    regularised. It is scikit-learn's `LogisticRegression(C=1 / (l2 * n))` on standardised features.

    Strengths of regularisation are tried from strong to weak, each fit starting from the one before. The one
    with the least validation loss is kept, and a layer's path ends early when two in a row have not lowered
    it. Test rows choose nothing. A fit is done when `gap <= tol * F`, where `gap` is an upper bound on
    F - min F that follows from convexity (see `certificate.py`); where rounding or `max_iter` prevents that,
    the gap that was reached is reported. Strengths whose validation loss is more than a standard error above
    the least are fitted to a gap of a tenth of that error only; the others all to `tol`, before one is kept.

    Args:
        train: features and labels to fit: a `FeatureStore`, or `ArrayFeatures`.
        valid: chooses the strength of regularisation; needed for more than one.
        test: only measured.
        l2: a strength, or several; 1 to 1e-4 in half decades if not given.
        early_stopping: instead of choosing among strengths, take the weakest, descend from nothing, and keep
            the point of least validation loss on the way. It is no optimum, as its gap says; nor does it
            begin from `start`.
        tol: relative gap at which a fit is done. Every predicted probability to 1e-4 takes about 1e-10.
        max_iter: L-BFGS steps for each strength.
        memory: bytes, half for the standardised rows of a layer (otherwise they are read in every pass) and
            half for the Gram matrix that conditions the problem (which otherwise is made for groups of
            features). Blocks of rows, about 64 MB, and some fifty copies of the weights come on top. The
            solution does not depend on it.
        device: where to compute; a GPU if there is one.
        start: probes fitted before, say at an earlier snapshot, to begin from where they are closer.
        num_classes: one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Raises:
        ProbeError: for labels out of range, NaN features, or splits that do not fit together.
    """
    if early_stopping and valid is None:
        raise ProbeError("stopping early needs rows that were not fitted; give valid=....")
    strengths = from_strong_to_weak(_PATH if l2 is None else l2, choosable=valid is not None)
    tol, max_iter = positive_number("tol", tol), whole_number("max_iter", max_iter, least=1)
    memory = whole_number("memory", memory, least=0)
    if not isinstance(start, FittedProbes | None):
        raise ProbeError(f"start is a {type(start).__name__}; give what fit_probes returned, or None.")
    splits = Splits.of(train, valid, test, num_classes)
    where = _device(device)
    readings: dict[str, list[Reading]] = {split: [] for split in splits.tables}
    classifiers, path = {}, []
    with tqdm(train.layers, desc="fit", leave=False, disable=None if progress else True) as layers:
        for layer in layers:
            layers.set_postfix_str(layer)
            fit = LayerFit(splits, layer, memory, where)
            if early_stopping:
                fit.run_early_stopped(strengths[-1], tol, max_iter)
            else:
                fit.run(strengths, tol, max_iter, start.classifiers.get(layer) if start else None)
            for split, table in splits.tables.items():
                readings[split].append(reading(table, fit.chosen, fit.size, fit.measure(split)))
            classifiers[layer] = fit.classifier()
            path += fit.path
    results = {
        split: result(split, table, splits.num_classes, readings[split])
        for split, table in splits.tables.items()
    }
    return FittedProbes(results["train"], results.get("valid"), results.get("test"), classifiers, tuple(path))


def _device(name: torch.device | str | None) -> torch.device:
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ProbeError(f"device={name!r} is not there; use device='cpu'.") from error
