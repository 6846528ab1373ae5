"""Results as pandas frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import pandas as pd

from hessian import LineSearch, Spectrum
from probes import ProbeResult, Reading

from ..jobs.controls import Controls

__all__ = ["by_step", "curvature", "frame", "history", "side_by_side", "with_controls"]


def frame(result: ProbeResult) -> pd.DataFrame:
    """One row per layer and target with the fields of `Reading`, and the references beside them."""
    rows = pd.DataFrame([asdict(reading) for reading in result.readings])
    references = pd.DataFrame([asdict(reference) for reference in result.references]).drop(columns="n")
    return rows.merge(references, on="target", how="left").assign(split=result.split)


def history(records: Iterable[tuple[int, ProbeResult]]) -> pd.DataFrame:
    """The frames of many (step, result) pairs under one another, with a column `step`."""
    frames = [frame(result).assign(step=step) for step, result in records]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def side_by_side(results: Mapping[str, ProbeResult], target: str | None = None) -> pd.DataFrame:
    """Prediction error in percent with its 95% interval, one row per layer and a column per result."""
    columns = {}
    for name, result in results.items():
        readings = result.of(target or result.readings[0].target).readings
        columns[name] = {r.layer: _error(r) for r in readings}
    first = list(results.values())[-1].readings
    layers = dict.fromkeys(layer for column in reversed(columns.values()) for layer in column)
    table = pd.DataFrame(columns).reindex(list(layers))
    table.insert(0, "features", pd.Series({r.layer: f"{r.features} ({r.reduction})" for r in first}))
    return table.rename_axis("layer").fillna("")


def _error(reading: Reading) -> str:
    low, high = reading.error_interval
    return f"{100 * reading.error:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def with_controls(result: ProbeResult, controls: Controls) -> pd.DataFrame:
    """One row per layer: the probe's error, and what it is to be held against, in percent or in bits.

    `task`, `control` and `selectivity` are errors on the training rows; `bits` is the code length per label.
    """
    columns = {"probe": {reading.layer: 100 * reading.error for reading in result.readings}}
    for name, other in controls.readouts.items():
        columns[name] = {reading.layer: 100 * reading.error for reading in other.readings}
    if controls.random_labels is not None:
        columns["task"] = {one.layer: 100 * one.error for one in controls.random_labels}
        columns["control"] = {one.layer: 100 * one.control_error for one in controls.random_labels}
        columns["selectivity"] = {one.layer: 100 * one.selectivity for one in controls.random_labels}
    if controls.code is not None:
        columns["bits"] = {one.layer: one.bits / one.n for one in controls.code}
    return pd.DataFrame(columns).rename_axis("layer")


def by_step(results: Mapping[int, ProbeResult], target: str | None = None) -> pd.DataFrame:
    """Prediction error in percent, one row per layer and a column per training step."""
    columns = {
        f"{step:,}": {r.layer: 100 * r.error for r in result.of(target or result.readings[0].target).readings}
        for step, result in sorted(results.items())
    }
    layers = dict.fromkeys(layer for column in reversed(columns.values()) for layer in column)
    return pd.DataFrame(columns).reindex(list(layers)).rename_axis("layer")


def curvature(
    spectra: Mapping[int, Spectrum], searches: Mapping[tuple[int, str], LineSearch] | None = None
) -> pd.DataFrame:
    """One row per step: both extreme eigenvalues, and what line searches along their vectors found.

    `residual` is the largest of the step's pairs, as a share of the spectrum's width; `1/alpha*` the inverse
    of the best step size, to be compared with the eigenvalue. What is known to worse than 1% has its doubt
    beside it: a residual, or what the angle of the vector leaves open; or it is not determined.
    """
    rows = []
    for step, spectrum in spectra.items():
        row = {"step": str(step)}
        for end, pairs in (("LA 1", spectrum.largest), ("SA 1", spectrum.smallest)):
            if pairs:
                row[f"{end} λ"] = _with_doubt(pairs[0].value, pairs[0].residual)
            search = (searches or {}).get((step, end))
            if search is not None:
                inverse = 1 / search.alpha_best if search.alpha_best else float("nan")
                doubt = search.alpha_doubt * inverse**2 if search.determined else float("inf")
                row[f"{end} 1/α*"] = _with_doubt(inverse, doubt)
                row[f"{end} decrease"] = f"{search.decrease:.4g}" if search.determined else "not determined"
        row["residual"] = f"{max(pair.residual for pair in spectrum.pairs) / (spectrum.width or 1):.4g}"
        row["products"], row["seconds"] = str(spectrum.products), f"{spectrum.seconds:.1f}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("step").fillna("")


def _with_doubt(value: float, doubt: float) -> str:
    if doubt == float("inf"):
        return "not determined"
    return f"{value:.4g}" if doubt <= 0.01 * abs(value) else f"{value:.4g} ± {doubt:.2g}"
