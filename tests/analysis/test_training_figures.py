"""Probes over training, in pictures and in a table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.figures.probes_over_training import error_curves, error_heat_map
from analysis.results.probes import by_step
from probes import ProbeResult, Reading, Reference


def reading(layer: str, error: float) -> Reading:
    return Reading(layer, "y", "flatten", 8, 0.1, 10, 100, error, 0.01, error, 0.01, None, None)


def result(errors: dict[str, float]) -> ProbeResult:
    readings = tuple(reading(layer, error) for layer, error in errors.items())
    return ProbeResult("test", readings, (Reference("y", 100, 0.9, None, None),))


RESULTS = {
    0: result({"input": 0.5, "conv": 0.4}),
    10: result({"input": 0.5, "conv": 0.3, "fc": 0.2}),
    1000: result({"input": 0.5, "conv": 0.2, "fc": 0.04}),
}


def test_the_table_has_a_row_per_layer_and_a_column_per_step() -> None:
    table = by_step(RESULTS)
    assert list(table.index) == ["input", "conv", "fc"]
    assert list(table.columns) == ["0", "10", "1,000"]
    assert table.loc["fc", "1,000"] == pytest.approx(4)
    assert math.isnan(table.loc["fc", "0"])


def test_the_heat_map_shows_every_error() -> None:
    figure = error_heat_map(RESULTS)
    axes, bar = figure.axes
    shown = np.asarray(axes.images[0].get_array(), float)
    np.testing.assert_allclose(shown, [[50, 50, 50], [40, 30, 20], [np.nan, 20, 4]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["input", "conv", "fc"]
    assert [text.get_text() for text in axes.texts] == ["50", "50", "50", "40", "30", "20", "20", "4.0"]
    assert "%" in bar.get_ylabel()


def test_a_curve_for_each_layer() -> None:
    figure = error_curves(RESULTS)
    (axes,) = figure.axes
    curves = {c.get_label(): c.lines[0].get_ydata() for c in axes.containers}
    assert list(curves) == ["input", "conv", "fc"]
    np.testing.assert_allclose(np.asarray(curves["conv"], float), [40, 30, 20])
    assert axes.get_xscale() == "symlog"  # from 0 to 1,000
