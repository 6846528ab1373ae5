"""A small sample of a stream of examples, in which those that matter are more likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from thermoscope.errors import HessianError
from thermoscope.nests import leaves, mapped

__all__ = ["Sample"]

# Examples that are fitted well count little, but never nothing: this share of the mean score is added.
_FLOOR = 0.1
# Examples kept for each that is used.
_POOL = 2


class Sample:
    """A sample of fixed size of a stream of examples, those with a high score more likely.

    Scores age while the network trains. So some `_POOL` times too many examples are kept, and at the time of
    the estimate they get fresh scores, by which those to be used are chosen among them.
    """

    def __init__(self, size: int, seed: int):
        self._size = _POOL * size
        self._generator = torch.Generator().manual_seed(seed)
        self._mean_score = 0.0
        self.clear()

    def clear(self) -> None:
        """Forget all examples."""
        self._kept: list[Any] = []  # batches of one example
        self._scores = torch.zeros(0)
        self._priorities = torch.zeros(0)
        self._next = 0.0  # the highest priority that did not stay

    def offer(self, batch: Any, scores: torch.Tensor) -> None:
        """Let the examples of a batch in, or not."""
        mean = float(scores.mean())
        self._mean_score = 0.9 * self._mean_score + 0.1 * mean if self._mean_score else mean
        scores = torch.cat([self._scores, scores + (_FLOOR * self._mean_score or 1.0)])
        new = _priorities(scores[len(self._scores) :], self._generator)
        priorities = torch.cat([self._priorities, new])
        chosen, threshold = _highest(priorities, self._size)
        self._next = max(self._next, threshold)
        old = len(self._kept)
        self._kept = [
            self._kept[i] if i < old else mapped(batch, torch.Tensor, partial(_row, i - old))
            for i in chosen.tolist()
        ]
        self._scores, self._priorities = scores[chosen], priorities[chosen]

    def draw(
        self, sizes: Sequence[int], rescore: Callable[[Any], torch.Tensor] | None
    ) -> list[tuple[Any, torch.Tensor]]:
        """Disjoint parts as (batch, weights); if there are too few examples, parts in proportion.

        The weights (k,) let a weighted sum estimate a mean over all examples seen. They are scaled so that
        in each part this agrees for the scores, which takes out what only the size of a part varies.
        """
        if len(self._kept) < len(sizes):
            raise HessianError(
                f"only {len(self._kept)} examples were seen since the last estimate; give larger batches or "
                "a larger every=."
            )
        counts = _weights(self._scores, self._next)
        counts = counts / counts.sum()
        scores = torch.ones(len(counts))
        if rescore is not None:
            scores = rescore(_joined(self._kept))
            scores = scores + (_FLOOR * float(counts @ scores) or 1.0)
        shares = counts * scores
        chosen, threshold = _highest(_priorities(shares, self._generator), sum(sizes))
        weights = counts[chosen] * _weights(shares[chosen], threshold)
        order = torch.randperm(len(chosen), generator=self._generator)
        ends = []
        for i in range(1, len(sizes) + 1):  # each part has at least one
            share = round(len(order) * sum(sizes[:i]) / sum(sizes))
            ends.append(min(max(i, share), len(order) - len(sizes) + i))
        parts = []
        for low, high in pairwise([0, *ends]):
            part = order[low:high]
            weight = weights[part] * float(shares.sum() / (weights[part] @ scores[chosen[part]]))
            parts.append((_joined([self._kept[i] for i in chosen[part].tolist()]), weight))
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers."""
        return {
            "kept": list(self._kept),
            "scores": self._scores.clone(),
            "priorities": self._priorities.clone(),
            "next": self._next,
            "mean_score": self._mean_score,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._kept = list(state["kept"])
        self._scores, self._priorities = state["scores"].clone(), state["priorities"].clone()
        self._next, self._mean_score = state["next"], state["mean_score"]
        self._generator.set_state(state["generator"].cpu())


def _priorities(scores: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """score / u, with u uniform in (0, 1]: priority sampling (Duffield, Lund and Thorup 2007)."""
    return scores / (1 - torch.rand(len(scores), generator=generator))


def _highest(priorities: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """Where the `count` highest are, in order of place, and the next one's priority (0 if there is none)."""
    order = priorities.argsort(descending=True)
    threshold = float(priorities[order[count]]) if len(order) > count else 0.0
    return order[:count].sort().values, threshold


def _weights(scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """How many examples each one in a priority sample stands for, without bias."""
    return scores.clamp(min=threshold) / scores


def _row(i: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[i : i + 1].clone()


def _joined(batches: list[Any]) -> Any:
    """Batches of one example as one batch."""
    columns = [
        list(column) for column in zip(*(leaves(batch, torch.Tensor) for batch in batches), strict=True)
    ]
    rest = iter(columns)
    return mapped(batches[0], torch.Tensor, lambda _: torch.cat(next(rest)))
