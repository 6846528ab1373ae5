"""When to measure: a set of steps, written in a few characters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from thermoscope.errors import AnalysisError

__all__ = ["Schedule"]

_MOST = 1_000_000  # steps; to measure more often than this is a slip of the pen


@dataclass(frozen=True)
class Schedule:
    """Steps of a training run.

    Text forms: `log:20` (twenty steps spaced evenly in their logarithm), `every:100`, `epoch` (the end of
    each), `none`. The last step always belongs to it, but for `none`.

    Raises:
        AnalysisError: for a text of another form.
    """

    text: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"none|epoch|(log|every):0*[1-9][0-9]{0,17}", self.text):
            raise AnalysisError(f"{self.text!r} is no schedule; write log:20, every:100, epoch or none.")
        word, number = self._parts
        if word == "log" and number > _MOST:
            raise self._too_many(number)

    def steps(self, total: int, per_epoch: int) -> frozenset[int]:
        """The steps, among 1 to `total`.

        Raises:
            AnalysisError: if there are more than a million.
        """
        word, number = self._parts
        if word == "none":
            return frozenset()
        if word == "log":
            import numpy as np  # not needed to say what a command takes

            spaced = np.geomspace(1, total, number).round().astype(int)
            return frozenset([*map(int, spaced), total])
        every = per_epoch if word == "epoch" else number
        if total // every > _MOST:
            raise self._too_many(total // every)
        return frozenset([*range(every, total + 1, every), total])

    @property
    def _parts(self) -> tuple[str, int]:
        word, _, number = self.text.partition(":")
        return word, int(number or 0)

    def _too_many(self, count: int) -> AnalysisError:
        return AnalysisError(f"{self.text!r} means {count:,} times, more than a million; log:20 has fewer.")
