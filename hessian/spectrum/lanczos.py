"""Our own solver: a thick-restart Lanczos run for both ends, a certificate, and a search for missed pairs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from thermoscope.errors import HessianError

from .arguments import CERTIFICATE, basis_capacity, product_limit
from .checkpoint import Arrays, SavedRun
from .completeness import MissedSearch
from .first_run import grow, wanted_pairs
from .goal import Span
from .krylov_basis import KrylovBasis
from .rayleigh_ritz import Block, certified, polished, rayleigh_ritz
from .solver import EigenProblem, EigenSolution, EigenSolver
from .tall import Matrix

__all__ = ["Lanczos"]


@dataclass(frozen=True)
class Lanczos(EigenSolver):
    """Thick-restart Lanczos (Wu and Simon 2000) with full orthogonalisation: one run serves both ends.

    It goes on until the wanted values have stood still; two products with random combinations of the vectors
    then certify all residuals (see `rayleigh_ritz.certified`), or, if they do not, one product for each
    measures them. A second run of 20 products looks for pairs that the first has missed. Ctrl-C returns
    the pairs so far.

    Args:
        max_products: a budget; when it is used up, the pairs are returned as they are. By default 1,000 and
            100 per pair. At least one per pair and two more.
        max_basis: Lanczos vectors kept in memory; more of them save products. By default 160, or three times
            the pairs and 40, or all of a space of up to 400 dimensions, if that fits into 2 GiB.
        check: look for missed pairs.
        save_to: a file for the state of an unfinished run: written at every restart, about every minute, and
            when anything ends the run early; the same call then continues from it. Removed at the end.
    """

    name = "lanczos"

    max_products: int | None = None
    max_basis: int | None = None
    check: bool = True
    save_to: str | os.PathLike[str] | None = None

    def solve(self, problem: EigenProblem) -> EigenSolution:
        """The wanted pairs, converged or not.

        Raises:
            HessianError: if the budget or the basis is too small for the request, or if `save_to` is damaged
                or belongs to another computation.
        """
        goal, operator = problem.goal, problem.operator
        problem.multiply.limit = product_limit(goal, self.max_products)
        capacity = basis_capacity(operator, goal.wanted, self.max_basis)
        saved = None
        if self.save_to is not None:
            request = {
                "size": problem.size, "dtype": str(operator.vector_dtype), "largest": goal.largest,
                "smallest": goal.smallest, "tol": goal.tol, "rtol": goal.rtol, "basis": capacity,
                "seed": problem.seed, "method": self.name,
            }  # fmt: skip
            saved = SavedRun(self.save_to, request)
        run = _Run(problem, capacity, saved)
        run.finish(self.check)
        return run.solution()


class _Run:
    """One computation, and all of it that an interrupt or a failure must not lose."""

    def __init__(self, problem: EigenProblem, capacity: int, saved: SavedRun | None):
        self._problem, self._capacity, self._saved = problem, capacity, saved
        self._operator, self._goal, self._products = problem.operator, problem.goal, problem.multiply
        self._generator = problem.generator()
        self._lanczos: KrylovBasis | None = None
        self._block: Block | None = None
        self._beyond: Matrix | None = None  # (value, residual) next to the wanted ones, (0 to 2, 2)
        self._residuals: Literal["measured", "certified", "estimated"] = "estimated"
        self._search: MissedSearch | None = None
        self._span = Span()
        self._interrupted = False
        self._breakdown: dict[str, float] = {}

    def finish(self, check: bool) -> None:
        """Go on to the end, or until Ctrl-C if there are pairs by then."""
        self._begin()
        finished = False
        try:
            finished = self._converge() and (not check or self._look_for_missed())
        except KeyboardInterrupt:
            self._interrupted = True
            if self._block is None and not (self._lanczos and self._lanczos.intact and self._lanczos.size):
                raise
        finally:
            if self._saved is not None:
                if finished:
                    self._saved.remove()
                else:
                    self._save()

    def solution(self) -> EigenSolution:
        """What is known, converged or not."""
        block, beyond, check = self._block, self._beyond, None
        if self._search is not None:
            block, check = self._search.block, self._search.summary()
            beyond = self._known_beyond(self._search)
        if block is None:
            assert self._lanczos is not None
            block, beyond = wanted_pairs(self._lanczos, self._lanczos.ritz(), self._goal)
        return EigenSolution(
            block, beyond, self._span, self._residuals, check, self._interrupted, self._breakdown
        )

    def _known_beyond(self, search: MissedSearch) -> Matrix | None:
        """What is known beside the pairs: by the first run, and by the search what is farther out."""
        if search.found or self._beyond is None:  # the first run's picture was not the whole one
            return search.beyond[[0, -1]] if len(search.beyond) else self._beyond
        values, residuals = self._beyond.T
        upper = max(values + residuals, default=-np.inf) if self._goal.largest else np.inf
        lower = min(values - residuals, default=np.inf) if self._goal.smallest else -np.inf
        outside = (search.beyond[:, 0] > upper) | (search.beyond[:, 0] < lower)
        return np.concatenate([self._beyond, search.beyond[outside]])

    def _begin(self) -> None:
        state = None if self._saved is None else self._saved.load()
        if state is None or "vectors" not in state:
            self._lanczos = KrylovBasis(
                self._products,
                self._operator.shape[0],
                self._capacity,
                generator=self._generator,
                dtype=self._operator.vector_dtype,
                device=self._operator.device,
                eps=self._operator.eps,
            )
            if state is None:
                self._lanczos.begin(self._problem.start)
        if state is not None:
            self._load(state)

    def _converge(self) -> bool:
        """The first run: fills `_block`; False if the products ran out before Lanczos was satisfied."""
        if self._block is not None:
            return True
        assert self._lanczos is not None
        began = self._products.seconds
        with self._timed("orthogonalisation"):
            ritz, satisfied = grow(self._lanczos, self._goal, self._span, self._products, self._save_when)
        self._breakdown["products"] = self._products.seconds - began
        self._breakdown["orthogonalisation"] -= self._breakdown["products"]
        with self._timed("residuals"):
            self._block, self._beyond = wanted_pairs(self._lanczos, ritz, self._goal)
            block = certified(self._block, self._products, self._generator)
            self._block, self._residuals = block, "certified"
            doubtful = bool((block.residuals > self._thresholds(block.values)).any())
            if satisfied and doubtful and self._products.left >= len(block.values):
                block = rayleigh_ritz(block.vectors.clone(), self._products(block.vectors))
                self._block, self._residuals = block, "measured"
                self._block = polished(
                    block, self._goal.ends, self._thresholds, self._products, lambda: self._products.left
                )
        if satisfied:
            self._lanczos = None
        self._save()
        return satisfied

    def _look_for_missed(self) -> bool:
        assert self._block is not None
        self._search = MissedSearch(
            self._block,
            self._goal,
            self._span,
            self._products,
            self._generator,
            self._capacity,
            self._operator.eps,
        )
        with self._timed("search"):
            return self._search.run()

    def _thresholds(self, values: Matrix) -> Matrix:
        return self._goal.thresholds(values, self._span)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._breakdown[phase] = time.monotonic() - began

    def _save_when(self, restarting: bool) -> None:
        """At every restart, and when enough time has passed: a save changes no digit."""
        if restarting or (self._saved is not None and self._saved.due):
            self._save()

    def _save(self) -> None:
        if self._saved is None:
            return
        block = self._block if self._search is None else self._search.block
        state: Arrays = {"count": np.array(self._products.count), "unit": np.array(self._products.unit)}
        state["span"] = np.array([self._span.low, self._span.high])
        state["generator"] = self._generator.get_state().numpy()
        if self._lanczos is not None:
            if not (self._lanczos.intact and self._lanczos.size):
                return
            state |= self._lanczos.state()
        elif block is not None:
            state |= {"vectors": block.vectors.cpu().numpy(), "products": block.products.cpu().numpy()}
            state |= {"doubt": np.array(block.doubt), "residuals": np.array(self._residuals)}
            if self._beyond is not None:
                state["beyond"] = self._beyond
        self._saved.save(state)

    def _load(self, state: Arrays) -> None:
        assert self._saved is not None
        operator = self._operator
        try:
            self._products.count = int(state["count"])
            self._products.unit = float(state["unit"])
            self._span = Span(*map(float, state["span"]))
            self._generator.set_state(torch.as_tensor(state["generator"]))
            if self._lanczos is not None:
                self._lanczos.load_state(state)
            else:
                vectors, stack = (
                    torch.as_tensor(state[name]).to(operator.device) for name in ("vectors", "products")
                )
                self._block = rayleigh_ritz(vectors, stack, float(state["doubt"]))
                self._residuals = "certified" if str(state["residuals"]) == "certified" else "measured"
                self._beyond = state.get("beyond")
        # Anything may be wrong with the contents of a file that somebody else has written.
        except Exception as error:
            raise self._saved.damaged() from error
        if self._products.left <= (CERTIFICATE if self._lanczos is not None else 0):
            raise HessianError(
                f"the computation in {self._saved.path} has already made {self._products.count} products; "
                f"raise max_products to continue it."
            )
        if self._lanczos is not None:
            change, norm = self._lanczos.change(), self._lanczos.scale
        else:
            assert self._block is not None
            change = float((self._products(self._block.vectors[-1:]) - self._block.products[-1:]).norm())
            norm = float(np.abs(self._block.values).max())
        # Products in float32 repeat to 1e-6 of the norm; another snapshot differs by far more.
        if not change <= 1e-4 * norm:
            raise self._saved.foreign()
