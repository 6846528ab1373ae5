"""Passes over the data, in pieces that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from thermoscope.errors import HessianError

from ..distributed import Team
from .batch import examples_in, moved, pieces, size_of
from .batch_loss import Objective
from .data import Batches
from .evaluating import evaluating
from .fingerprint import fingerprint
from .memory import default_limit, ran_out

__all__ = ["Passes"]

_GRAPHS = 4  # a product of curvature needs about this many times the memory of the loss's own graph


class Passes:
    """The data of an objective, read again and again.

    Attributes:
        objective: what is computed on them.
        team: the processes that share the data, if there are any.
        memory_limit: bytes to use beyond weights and data.
        terms: what the mean is over in the last pass, over all processes: examples, or what `count` gave.
        examples: in the last pass, over all processes.
        own_examples: those of this process.
    """

    def __init__(
        self,
        objective: Objective,
        data: Any,
        count: Callable[[Any], float] | None,
        memory_limit: int | None,
        team: Team | None,
    ):
        if memory_limit is not None and not memory_limit > 0:
            raise HessianError(f"memory_limit is {memory_limit}; it must be a positive number of bytes.")
        self.objective, self.team = objective, team
        self._count = count
        self.memory_limit = memory_limit or default_limit(objective.device)
        self.terms = 0.0
        self.examples = self.own_examples = 0
        self._data = Batches(data)
        self._read: int | None = None  # fingerprint of the first pass
        self._piece = 2**62  # most examples at a time
        sample = self.first_piece(8)
        per_example = objective.memory(sample) / self.size(sample)
        self._piece = max(1, int(self.memory_limit / (_GRAPHS * max(per_example, 1))))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in eval mode; it and all random streams are as they were afterwards."""
        with evaluating(self.objective.model), self._data.preserved_streams():
            yield

    def terms_of(self, batch: Any) -> float:
        """What the mean over this batch is over.

        Raises:
            HessianError: if `count` gives no such number.
        """
        if self._count is None:
            return examples_in(batch)
        found: Any = self._count(batch)
        try:
            terms = float(found)
        except (TypeError, ValueError, RuntimeError):
            terms = math.nan
        if not 0 <= terms < math.inf:
            raise HessianError(
                f"count= gave {str(found)[:40]!r} for a batch; it must give the number of terms in the "
                "batch's mean, or the sum of their weights."
            )
        return terms

    def size(self, batch: Any) -> int:
        """Examples in a batch; where its tensors do not tell, its terms."""
        size = size_of(batch)
        return max(1, round(self.terms_of(batch))) if size is None else size

    def each(self, add: Callable[[Any, float], None]) -> float:
        """Call `add(batch, terms)` for batches that fit the memory; the number of terms in all processes.

        Batches without a term are left out: they have no mean. `add` must change its sums only after all
        that may run out of memory.

        Raises:
            HessianError: if the examples are not those of the first pass; their order may be another.
        """
        terms, examples, read = 0.0, 0, 0
        with self.evaluating():
            for batch in self._data:
                read = (read + fingerprint(batch)) % 2**64
                batch = moved(batch, self.objective.device, self.objective.dtype)
                examples += self.size(batch)
                terms += self._in_pieces(batch, add)
        self._check_same(read, examples)
        self.own_examples = examples
        own = torch.tensor([terms, examples], dtype=torch.float64, device=self.objective.device)
        whole = self.summed(own).tolist()
        self.terms, self.examples = whole[0], int(whole[1])
        if not self.terms > 0:
            raise HessianError("count= gives no term in all the data; there is nothing to take a mean over.")
        return self.terms

    def _check_same(self, read: int, examples: int) -> None:
        if self._read is None:
            self._read = read
        elif read != self._read:
            number = "as many" if examples == self.own_examples else f"{examples:,} for {self.own_examples:,}"
            raise HessianError(
                f"another pass over the data gave other examples than the first ({number}): switch off "
                "augmentation, and give a fixed set of examples (fixed_subset reads one)."
            )

    def summed(self, total: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return total if self.team is None else self.team.sum(total)

    def first_piece(self, most: int) -> Any:
        """The first batch that has a term, cut to what fits the memory and to `most` examples."""
        with self._data.preserved_streams():
            for batch in self._data:
                self.objective.check_form(batch)
                batch = moved(batch, self.objective.device, self.objective.dtype)
                for piece in pieces(batch, min(most, self._piece)):
                    if self.terms_of(piece) > 0:
                        return piece
        raise HessianError("count= gives no term in all the data; there is nothing to take a mean over.")

    def _in_pieces(self, batch: Any, add: Callable[[Any, float], None]) -> float:
        total = 0.0
        for piece in pieces(batch, self._piece):
            terms, size = self.terms_of(piece), self.size(piece)
            if terms == 0:
                continue
            try:
                add(piece, terms)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
            else:
                total += terms
                continue
            self._piece = max(1, size // 2)  # outside the handler, which holds on to the memory
            if len(pieces(piece, self._piece)) == 1:
                raise HessianError(f"a batch of {size} examples does not fit the memory; make it smaller.")
            total += self._in_pieces(piece, add)
        return total
