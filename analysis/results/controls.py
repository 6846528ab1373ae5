"""Is it the layer, or the probe? Controls of probes on the same features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from probes import CodeLength, ProbeResult, Selectivity

from .family import Family, register
from .probes import probe_result

__all__ = ["Controls", "ControlsFamily", "with_controls"]

T = TypeVar("T")


@dataclass(frozen=True)
class Controls:
    """What probes' errors are to be held against; None where it was not asked for.

    Attributes:
        random_labels: each layer's probe and one of the same penalty on random labels, on the training set.
        code: prequential code length of the training labels, by layer.
        neighbours: each layer read out by its nearest training rows, on the test set.
        ridge: each layer read out by ridge regression, on the test set.
        curve: each layer's probe by number of training rows, on the test set.
    """

    random_labels: tuple[Selectivity, ...] | None = None
    code: tuple[CodeLength, ...] | None = None
    neighbours: ProbeResult | None = None
    ridge: ProbeResult | None = None
    curve: Mapping[int, ProbeResult] | None = None

    @property
    def readouts(self) -> dict[str, ProbeResult]:
        """The results of other read-outs that were measured, by name."""
        both = {"neighbours": self.neighbours, "ridge": self.ridge}
        return {name: result for name, result in both.items() if result is not None}

    def __contains__(self, control: str) -> bool:
        """Whether this one, a name of `CONTROLS`, was measured."""
        return getattr(self, control.replace("-", "_")) is not None


class ControlsFamily(Family[Controls]):
    """Tags: `controls/selectivity/<layer>`, likewise `bits per label`; `controls/ridge/error/<layer>`."""

    kind = Controls

    def read(self, line: Mapping[str, Any]) -> Controls:
        """Of a line that has null for what was not measured."""

        def made(name: str, make: Callable[[Any], T]) -> T | None:
            return None if line[name] is None else make(line[name])

        return Controls(
            made("random_labels", lambda lines: tuple(Selectivity(**one) for one in lines)),
            made("code", lambda lines: tuple(_code_length(one) for one in lines)),
            made("neighbours", probe_result),
            made("ridge", probe_result),
            made("curve", lambda curve: {int(rows): probe_result(one) for rows, one in curve.items()}),
        )

    def scalars(self, result: Controls, name: str) -> dict[str, float]:
        """By layer, of those that were measured."""
        found: dict[str, float] = {}
        for one in result.random_labels or ():
            found[f"controls/selectivity/{one.layer}"] = one.selectivity
        for code in result.code or ():
            found[f"controls/bits per label/{code.layer}"] = code.bits / code.n
        for readout, measured in result.readouts.items():
            for reading in measured.readings:
                found[f"controls/{readout}/error/{reading.layer}"] = reading.error
        return found

    def frame(self, result: Controls) -> pd.DataFrame:
        """One row per layer, in percent or in bits; see `with_controls`."""
        return _table(result, {})


register(ControlsFamily())


def _code_length(line: Mapping[str, Any]) -> CodeLength:
    return CodeLength(**{**line, "blocks": tuple((known, bits) for known, bits in line["blocks"])})


def with_controls(result: ProbeResult, controls: Controls) -> pd.DataFrame:
    """One row per layer: the probe's error, and what it is to be held against, in percent or in bits.

    `task`, `control` and `selectivity` are errors on the training rows; `bits` is the code length per label.
    """
    return _table(controls, {"probe": {reading.layer: 100 * reading.error for reading in result.readings}})


def _table(controls: Controls, columns: dict[str, dict[str, float]]) -> pd.DataFrame:
    for name, other in controls.readouts.items():
        columns[name] = {reading.layer: 100 * reading.error for reading in other.readings}
    if controls.random_labels is not None:
        columns["task"] = {one.layer: 100 * one.error for one in controls.random_labels}
        columns["control"] = {one.layer: 100 * one.control_error for one in controls.random_labels}
        columns["selectivity"] = {one.layer: 100 * one.selectivity for one in controls.random_labels}
    if controls.code is not None:
        columns["bits"] = {one.layer: one.bits / one.n for one in controls.code}
    return pd.DataFrame(columns).rename_axis("layer")
