"""Figures show what the results say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis import error_by_depth
from probes import ProbeResult

from .test_runs import READING, RESULT


def test_curves_bars_and_references() -> None:
    later = replace(RESULT, readings=tuple(replace(r, error=r.error / 4) for r in RESULT.readings))
    (axes,) = error_by_depth({"before": RESULT, "after": later}, title="a run").axes
    before, after = axes.containers
    assert np.allclose(before[0].get_ydata(), [20, 10])
    assert np.allclose(after[0].get_ydata(), [5, 2.5])
    (segments,) = before[2]
    assert np.allclose(
        [s[1, 1] - s[0, 1] for s in segments.get_segments()], 2 * 1.959964
    )  # of a record without an interval
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["the model's own error (8.0%)", "before", "after"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv1", "fc"]
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("count", [1, 10, 45, 128])
def test_nothing_is_cut_or_overlaps(count: int) -> None:
    readings = tuple(replace(READING, layer=f"features.denseblock{i}.denselayer") for i in range(count))
    figure = error_by_depth({"now": ProbeResult("valid", readings, RESULT.references)})
    figure.canvas.draw()
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [label.get_window_extent(renderer) for label in axes.get_xticklabels()]
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    for label in labels:
        box = label.get_window_extent(renderer)
        assert box.y0 >= -0.5
        assert box.x0 >= -0.5
        assert box.x1 <= figure.bbox.x1 + 0.5
    spacing = np.diff([box.x1 for box in boxes])
    # Rotated by 45 degrees, lines of text are as far apart as their anchors over the square root of two.
    height = 8 * figure.dpi / 72
    assert all(spacing / np.sqrt(2) > height)
