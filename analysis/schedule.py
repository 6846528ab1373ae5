"""When to measure: a set of steps, written in a few characters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import AnalysisError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Steps of a training run.

    Text forms: `log:20` (twenty steps spaced evenly in their logarithm), `every:100`, `epoch` (the end of
    each), `none`. The last step always belongs to it, but for `none`.
    """

    text: str

    def steps(self, total: int, per_epoch: int) -> frozenset[int]:
        """The steps, among 1 to `total`.

        Raises:
            AnalysisError: for a text of another form.
        """
        word, _, number = self.text.partition(":")
        if self.text == "none":
            return frozenset()
        if self.text == "epoch":
            return frozenset([*range(per_epoch, total + 1, per_epoch), total])
        if number.isdigit() and int(number) > 0:
            if word == "every":
                return frozenset([*range(int(number), total + 1, int(number)), total])
            if word == "log":
                spaced = np.geomspace(1, total, int(number)).round().astype(int)
                return frozenset([*map(int, spaced), total])
        raise AnalysisError(f"{self.text!r} is no schedule; write log:20, every:100, epoch or none.")
