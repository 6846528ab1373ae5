"""Results as pandas frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import pandas as pd

from probes import ProbeResult

__all__ = ["frame", "history", "side_by_side"]


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
    """Prediction error in percent with its standard error, one row per layer and a column per result."""
    columns = {}
    for name, result in results.items():
        readings = result.of(target or result.readings[0].target).readings
        columns[name] = {r.layer: f"{100 * r.error:.2f} ± {100 * r.error_se:.2f}" for r in readings}
    first = list(results.values())[-1].readings
    layers = dict.fromkeys(layer for column in reversed(columns.values()) for layer in column)
    table = pd.DataFrame(columns).reindex(list(layers))
    table.insert(0, "features", pd.Series({r.layer: f"{r.features} ({r.reduction})" for r in first}))
    return table.rename_axis("layer").fillna("")
