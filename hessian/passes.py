"""Passes over the data, in pieces that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .data import Batches, examples_in, moved, pieces
from .errors import HessianError
from .hvp import evaluating
from .memory import default_limit, ran_out
from .objective import Objective
from .team import Team

__all__ = ["Passes"]

_GRAPHS = 4  # a product of curvature needs about this many times the memory of the loss's own graph


class Passes:
    """The data of an objective, read again and again.

    Attributes:
        objective: what is computed on them.
        team: the processes that share the data, if there are any.
        memory_limit: bytes to use beyond weights and data.
        examples: terms of the mean in the last pass, over all processes.
        own_examples: those of this process.
    """

    def __init__(
        self,
        objective: Objective,
        data: Any,
        count: Callable[[Any], int] | None,
        memory_limit: int | None,
        team: Team | None,
    ):
        self.objective, self.team = objective, team
        self.count = count or examples_in
        self.memory_limit = memory_limit or default_limit(objective.device)
        self.examples = self.own_examples = 0
        self._data = Batches(data)
        self._piece = 2**62  # most examples at a time
        sample = pieces(self._first_batch(), 8)[0]
        per_example = objective.memory_per_example(sample)
        self._piece = max(1, int(self.memory_limit / (_GRAPHS * max(per_example, 1))))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in eval mode; it and all random streams are as they were afterwards."""
        with evaluating(self.objective.model), self._data.preserved_streams():
            yield

    def each(self, add: Callable[[Any, int], None]) -> int:
        """Call `add(batch, terms)` for batches that fit the memory; the number of terms in all processes.

        `add` must change its sums only after all that may run out of memory.
        """
        total = 0
        with self.evaluating():
            for batch in self._data:
                total += self._in_pieces(moved(batch, self.objective.device, self.objective.dtype), add)
        self.own_examples = total
        whole = torch.tensor(float(total), dtype=torch.float64, device=self.objective.device)
        self.examples = int(self.summed(whole))
        return self.examples

    def summed(self, total: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return total if self.team is None else self.team.sum(total)

    def first_piece(self, most: int) -> tuple[Any, int]:
        """The first batch, cut to what fits the memory and to `most` examples, and its number of terms."""
        piece = pieces(self._first_batch(), min(most, self._piece))[0]
        return piece, self.count(piece)

    def _first_batch(self) -> Any:
        with self._data.preserved_streams():
            return moved(next(iter(self._data)), self.objective.device, self.objective.dtype)

    def _in_pieces(self, batch: Any, add: Callable[[Any, int], None]) -> int:
        total = 0
        for piece in pieces(batch, self._piece):
            n, size = self.count(piece), examples_in(piece)
            try:
                add(piece, n)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
            else:
                total += n
                continue
            self._piece = max(1, size // 2)  # outside the handler, which holds on to the memory
            if len(pieces(piece, self._piece)) == 1:
                raise HessianError(f"a batch of {size} examples does not fit the memory; make it smaller.")
            total += self._in_pieces(piece, add)
        return total
