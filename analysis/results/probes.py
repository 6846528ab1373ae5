"""Readings of probes: one per layer and target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from probes import ProbeResult, Reading, Reference

from ..figures.probes import error_by_depth
from .family import Drawing, Family, Occasion, frame, register

__all__ = ["ProbeResults", "by_step", "history", "probe_result", "side_by_side"]


class ProbeResults(Family[ProbeResult]):
    """Tags: `probes/<split>/error/<layer>`, likewise `loss` and `top5_error`; `model/<split>/error`.

    With several targets the split is `<split>/<target>`.
    """

    kind = ProbeResult

    def line(self, result: ProbeResult, at: Occasion[ProbeResult], *, weights: str = "") -> Mapping[str, Any]:
        """With where the probed model's weights are from, if that is given."""
        return {**({"weights": weights} if weights else {}), **asdict(result)}

    def read(self, line: Mapping[str, Any]) -> ProbeResult:
        """All but where the weights are from."""
        return probe_result(line)

    def scalars(self, result: ProbeResult, name: str) -> dict[str, float]:
        """Of every probe, and the model's own error."""
        many = len(result.references) > 1
        found: dict[str, float] = {}
        for r in result.readings:
            split = f"{result.split}/{r.target}" if many else result.split
            found[f"probes/{split}/error/{r.layer}"] = r.error
            found[f"probes/{split}/loss/{r.layer}"] = r.loss
            if r.top5_error is not None:
                found[f"probes/{split}/top5_error/{r.layer}"] = r.top5_error
        for reference in result.references:
            if reference.model_error is not None:
                found[f"model/{result.split}/error"] = reference.model_error
        return found

    def drawings(self, result: ProbeResult, at: Occasion[ProbeResult]) -> Iterator[Drawing]:
        """Error by depth for each target, beside the split's first result."""
        alike = [logged for logged in at.earlier() if logged.result.split == result.split]
        for target in (reference.target for reference in result.references):
            first = next(x for x in alike if target in {r.target for r in x.result.references})
            before = "at initialisation" if first.step == 0 else f"step {first.step:,}"
            curves = {before: first.result}
            if at.step != first.step:
                curves[f"step {at.step:,}"] = result
            suffix = "" if target == "y" else f"_{target}"  # the name of a single label set without one
            figure = error_by_depth(curves, title=f"{at.run.name}: {result.split}", target=target)
            tag = f"probes/{result.split}/error by depth{suffix}"
            yield Drawing(tag, f"probes_{result.split}{suffix}", figure)

    def frame(self, result: ProbeResult) -> pd.DataFrame:
        """One row per layer and target with the fields of `Reading`, and the references beside them."""
        rows = pd.DataFrame([asdict(reading) for reading in result.readings])
        references = pd.DataFrame([asdict(reference) for reference in result.references]).drop(columns="n")
        return rows.merge(references, on="target", how="left").assign(split=result.split)


register(ProbeResults())


def probe_result(line: Mapping[str, Any]) -> ProbeResult:
    """From what `asdict` has made of it."""
    return ProbeResult(
        line["split"],
        tuple(Reading(**reading) for reading in line["readings"]),
        tuple(Reference(**reference) for reference in line["references"]),
        tuple(line["missing"]),
    )


def history(results: Iterable[tuple[int, ProbeResult]]) -> pd.DataFrame:
    """The frames of many (step, result) pairs under one another, with a column `step`."""
    frames = [frame(result).assign(step=step) for step, result in results]
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


def by_step(results: Mapping[int, ProbeResult], target: str | None = None) -> pd.DataFrame:
    """Prediction error in percent, one row per layer and a column per training step."""
    columns = {
        f"{step:,}": {r.layer: 100 * r.error for r in result.of(target or result.readings[0].target).readings}
        for step, result in sorted(results.items())
    }
    layers = dict.fromkeys(layer for column in reversed(columns.values()) for layer in column)
    return pd.DataFrame(columns).reindex(list(layers)).rename_axis("layer")
