"""Schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import AnalysisError, Schedule


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("every:4", {4, 8, 10}),
        ("epoch", {3, 6, 9, 10}),
        ("none", set()),
        ("log:1", {1, 10}),
        ("log:2", {1, 10}),
        ("log:3", {1, 3, 10}),
    ],
)
def test_steps(text: str, steps: set[int]) -> None:
    assert Schedule(text).steps(total=10, per_epoch=3) == steps


def test_steps_are_the_nearest_ones() -> None:
    assert Schedule("log:3").steps(total=8, per_epoch=1) == {1, 3, 8}  # the root of 8 is 2.83


@given(st.integers(1, 10_000), st.integers(1, 50))
def test_log_schedules_stay_in_the_run_and_hold_its_end(total: int, count: int) -> None:
    steps = Schedule(f"log:{count}").steps(total, per_epoch=1)
    assert total in steps
    assert min(steps) >= 1
    assert max(steps) == total
    assert len(steps) <= count + 1


@pytest.mark.parametrize("text", ["", "log", "log:0", "log:-3", "every:x", "sometimes:3", "log:2.5"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(AnalysisError, match="write log:20, every:100, epoch or none"):
        Schedule(text).steps(10, 3)
