"""Is it the layer, or the probe? The controls of a probing, measured on the features that it stored."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from probes import (
    ArrayFeatures,
    FeatureTable,
    FittedProbes,
    LearningCurve,
    ProbeResult,
    Selectivity,
    code_length,
    learning_curve,
    nearest_neighbours,
    ridge,
    selectivity,
)

from ..results.controls import Controls

__all__ = ["measure_controls"]


_NEIGHBOURS = 20


def measure_controls(
    wanted: Collection[str],
    fitted: FittedProbes,
    train: FeatureTable,
    valid: FeatureTable,
    test: FeatureTable,
    *,
    l2: Sequence[float] | None,
    num_classes: int,
    device: str,
    progress: bool,
) -> Controls:
    """Measure the controls of these names.

    Args:
        wanted: names of `CONTROLS`.
        fitted: the probes; each is compared with one of its own penalty.
        train, valid, test: the features that they were fitted to, chosen and measured on.
        l2, num_classes, device, progress: as they were fitted.
    """
    splits: dict[str, Any] = {"train": train, "valid": valid, "test": test}
    plain: dict[str, Any] = {"num_classes": num_classes, "progress": progress}
    fit = {**plain, "device": device}
    neighbours = min(_NEIGHBOURS, train.n)
    return Controls(
        _random_labels(fitted, train, fit) if "random-labels" in wanted else None,
        code_length(train=train, **fit) if "code" in wanted else None,
        nearest_neighbours(train=train, test=test, k=neighbours, **plain) if "neighbours" in wanted else None,
        ridge(**splits, **plain)["test"] if "ridge" in wanted else None,
        _curve(learning_curve(**splits, l2=l2, **fit)) if "curve" in wanted else None,
    )


def _random_labels(
    fitted: FittedProbes, train: FeatureTable, options: dict[str, Any]
) -> tuple[Selectivity, ...]:
    """Layers of the same penalty together."""
    found: dict[str, Selectivity] = {}
    penalties = {reading.layer: reading.l2 for reading in fitted.train.readings}
    for l2 in sorted({l2 for l2 in penalties.values() if l2 is not None}):
        features = {layer: train[layer] for layer in train.layers if penalties[layer] == l2}
        table = ArrayFeatures(features, train.labels, train.reductions)
        found |= {one.layer: one for one in selectivity(train=table, l2=l2, **options)}
    return tuple(found[layer] for layer in train.layers)


def _curve(curve: LearningCurve) -> dict[int, ProbeResult]:
    tests = [fit.test for fit in curve.fits]
    return {rows: test for rows, test in zip(curve.sizes, tests, strict=True) if test is not None}
