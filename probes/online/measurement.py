"""A measurement: what one pass over a split says about probes, labels and the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from thermoscope.batches import logits_of
from thermoscope.errors import ProbeError

from ..digests import input_digests, mixed
from ..features.feature_reader import Batch
from ..features.reduction import BoundReduction
from ..intervals import normal
from ..mean_se import Tally
from ..results import Reading, Reference
from .bank import Bank
from .labels import Labels

__all__ = ["Measurement"]


class Measurement:
    """Sums over the batches of a split, and the readings that follow from them."""

    def __init__(self, bank: Bank):
        self._bank, self._targets = bank, bank.targets
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._summaries: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}  # that have a label that counts
        self._own = Tally((1,))  # the model's own errors
        self.fingerprint = 0  # of the examples, whatever their order

    @property
    def is_empty(self) -> bool:
        """Whether no batch was added."""
        return not self._tallies

    def add(self, output: Any, batch: Batch, labels: Labels) -> None:
        """Take in a batch: what the model answered, its layers' features, the labels."""
        self._bank.measure({layer: x for layer, (x, _) in batch.items()}, labels, self._tallies)
        for name, t in self._targets.items():
            values = labels.values[name]
            values = values[t.counted(values)]
            self._rows[name] = self._rows.get(name, 0) + len(values)
            summary = t.summary(self._bank.centred(name, values))
            self._summaries[name] = self._summaries[name] + summary if name in self._summaries else summary
        primary, target = next(iter(self._targets.items()))
        logits, answer = logits_of(output), labels.values[primary]
        wrong = None if logits is None or logits.is_nested else target.model_errors(logits, answer)
        if wrong is not None:
            self._own.add(wrong[:, None], target.counted(answer)[:, None])

    def note_examples(self, given: Any, examples: int) -> None:
        """Add a batch, as the loader gave it, to the fingerprint."""
        digests = mixed(input_digests(given, max(examples, 1)))
        self.fingerprint = (self.fingerprint + int(digests.sum(dtype=np.uint64))) % 2**64

    def reduce(self, group: dist.ProcessGroup) -> None:
        """Sum over the processes of a group."""
        for tally in [*self._tallies.values(), self._own]:
            tally.reduce(group)
        for name, summary in self._summaries.items():
            dist.all_reduce(summary, group=group)
            rows = torch.tensor(float(self._rows[name]), dtype=torch.float64, device=summary.device)
            dist.all_reduce(rows, group=group)
            self._rows[name] = int(rows)

    def require_rows(self, split: str) -> None:
        """Refuse a split of which no row counts for some target.

        Raises:
            ProbeError: naming both.
        """
        for (_, name), tally in self._tallies.items():
            if not float(tally.rows):
                raise ProbeError(f"no row of split {split!r} has a label that counts for target {name!r}.")

    def losses(self) -> dict[tuple[str, str], torch.Tensor]:
        """Mean losses (lrs,) by layer and target."""
        return {key: tally.means()[0][:, 0] for key, tally in self._tallies.items()}

    def readings(self, bound: Mapping[str, BoundReduction], layers: list[str]) -> tuple[Reading, ...]:
        """Of these layers, as far as they ran."""
        return tuple(
            self._reading(layer, name, bound[layer])
            for layer in layers
            for name in self._targets
            if (layer, name) in self._tallies
        )

    def references(self) -> tuple[Reference, ...]:
        """One per target."""
        return tuple(self._reference(name) for name in self._targets)

    def _reading(self, layer: str, name: str, bound: BoundReduction) -> Reading:
        target, r = self._targets[name], self._bank.best_lr(layer, name)
        tally, summary = self._tallies[layer, name], self._summaries[name]
        means, errors = tally.means()
        found = dict(
            zip(target.metrics, zip(means[r].tolist(), errors[r].tolist(), strict=True), strict=True)
        )
        loss, top5 = found["loss"], found.get("top5_error", (None, None))
        error, error_se = target.error(found, summary)
        if "error" in found:
            low, high = tally.interval((r, target.metrics.index("error")))
        else:
            low, high = normal(error, error_se)
        return Reading(
            layer=layer,
            target=name,
            reduction=bound.described,
            features=bound.size,
            lr=self._bank.lrs[r],
            steps=self._bank.steps_of(layer),
            n=int(tally.rows),
            loss=loss[0],
            loss_se=loss[1],
            error=error,
            error_se=error_se,
            top5_error=top5[0],
            top5_error_se=top5[1],
            error_low=low,
            error_high=high,
        )

    def _reference(self, name: str) -> Reference:
        target, summary = self._targets[name], self._summaries[name]
        mine = name == next(iter(self._targets)) and float(self._own.rows) > 0
        rows, majority = self._rows[name], target.majority_error(summary)
        if not mine:
            return Reference(name, rows, majority, None, None)
        error, se = (float(part[0]) for part in self._own.means())
        return Reference(name, rows, majority, error, se, *self._own.interval(0))
