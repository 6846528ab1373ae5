"""The extreme eigenpairs of a symmetric operator, both ends in one run, with proof of what they are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator, as_operator
from .angles import angles
from .arguments import CERTIFICATE, basis_capacity, checked_goal, product_limit, seeded, start_vector
from .checkpoint import Arrays, SavedRun
from .completeness import MissedSearch
from .counted import Products
from .eigsh import eigsh_block
from .first_run import grow, wanted_pairs
from .goal import Goal, Span
from .lanczos import Lanczos
from .rayleigh_ritz import Block, certified, polished, rayleigh_ritz
from .results import Eigenpair, MissedCheck, Spectrum
from .tall import Matrix

__all__ = ["extreme_eigenpairs"]


def extreme_eigenpairs(
    operator: object,
    largest: int = 1,
    smallest: int = 1,
    *,
    tol: float = 1e-3,
    rtol: float = 0.1,
    max_products: int | None = None,
    max_basis: int | None = None,
    start: object = None,
    seed: int = 0,
    method: Literal["lanczos", "eigsh"] = "lanczos",
    check: bool = True,
    save_to: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Spectrum:
    """LA(largest) and SA(smallest) of a symmetric operator.

    One thick-restart Lanczos run (Wu and Simon 2000) with full orthogonalisation serves both ends. It goes on
    until the wanted values have stood still; two products with random combinations of the vectors then
    certify all residuals (`hessian.block.certified`), or, if they do not, one product for each measures them.
    A second run of 20 products looks for pairs that the first has missed. Ctrl-C returns the pairs so far.

    The same operator, request and seed give the same digits: nothing here depends on time. A vector's sign is
    such that its largest component is positive; `Spectrum.downhill` turns vectors by a gradient.

    Args:
        operator: a `SymmetricOperator`, or a real symmetric array, tensor, sparse matrix or scipy
            `LinearOperator`.
        largest: how many of the largest eigenvalues; 0 for none.
        smallest: how many of the smallest (the most negative ones); 0 for none.
        tol: a pair has converged when ||A v - lambda v|| <= tol x (largest - smallest eigenvalue), and
        rtol: when it is no more than rtol x |lambda| either, unless lambda is zero as far as tol can tell: an
            end that is small beside the other is known by its own measure too. `inf` asks for tol only.
        max_products: a budget; when it is used up, the pairs are returned as they are. By default 1,000 and
            100 per pair. At least one per pair and two more. ("lanczos" only, as are `save_to` and the answer
            to Ctrl-C.)
        max_basis: Lanczos vectors kept in memory; more of them save products. By default 160, or three times
            the pairs and 40, or all of a space of up to 400 dimensions, if that fits into 2 GiB.
        start: begin with the sum of these vectors: the `Spectrum` of another snapshot, eigenpairs, or vectors
            as rows. It saves little, even if they are close (4 to 12 of 150 products for a LeNet), since the
            Krylov space has to grow all the same; and the digits then depend on them.
        seed: of the random start vectors; the global random streams are not touched.
        method: "eigsh" calls scipy's solver once for each end; takes more products.
        check: look for missed pairs ("lanczos" only).
        save_to: a file for the state of an unfinished run: written at every restart, about every minute, and
            when anything ends the run early; the same call then continues from it. Removed at the end.
        progress: show a progress bar.

    Raises:
        HessianError: if the request is impossible; if the operator is not symmetric, another one each time,
            or its products are not finite, not real or of another shape; or if `save_to` is damaged or
            belongs to another computation.
    """
    began = time.monotonic()
    operator = as_operator(operator)
    goal = checked_goal(operator, largest, smallest, tol, rtol, max_products)
    capacity = basis_capacity(operator, goal.wanted, max_basis)
    if method not in ("lanczos", "eigsh"):
        raise HessianError(f'method="{method}" is unknown; the methods are "lanczos" and "eigsh".')
    saved = None
    if save_to is not None:
        request = {
            "size": operator.shape[0], "dtype": str(operator.vector_dtype), "largest": goal.largest,
            "smallest": goal.smallest, "tol": tol, "rtol": rtol, "basis": capacity, "seed": seed,
            "method": method,
        }  # fmt: skip
        saved = SavedRun(save_to, request)
    limit = product_limit(goal, max_products) if method == "lanczos" else None
    with Products(operator, limit, progress) as products:
        solver = _Solver(operator, goal, capacity, products, saved, seed)
        if method == "eigsh":
            solver.reference(start_vector(start, operator), max_basis)
        else:
            solver.run(start_vector(start, operator), check)
        return solver.spectrum(method, time.monotonic() - began)


class _Solver:
    """One computation, and all of it that an interrupt or a failure must not lose."""

    def __init__(
        self,
        operator: SymmetricOperator,
        goal: Goal,
        capacity: int,
        products: Products,
        saved: SavedRun | None,
        seed: int,
    ):
        self._operator, self._goal, self._capacity = operator, goal, capacity
        self._products, self._saved = products, saved
        self._generator = seeded(seed)
        self._lanczos: Lanczos | None = None
        self._block: Block | None = None
        self._beyond: Matrix | None = None  # (value, residual) next to the wanted ones, (0 to 2, 2)
        self._residuals: Literal["measured", "certified", "estimated"] = "estimated"
        self._search: MissedSearch | None = None
        self._span = Span()
        self._interrupted = False
        self._breakdown: dict[str, float] = {}

    def reference(self, start: torch.Tensor | None, max_basis: int | None) -> None:
        """`method="eigsh"`."""
        if start is None:
            start = torch.randn(self._operator.shape[0], generator=self._generator, dtype=torch.float64)
        self._block = eigsh_block(self._products, self._operator, self._goal, start, max_basis)
        self._residuals = "measured"

    def run(self, start: torch.Tensor | None, check: bool) -> None:
        """`method="lanczos"`."""
        self._begin(start)
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

    def spectrum(self, method: str, seconds: float) -> Spectrum:
        """What is known, converged or not."""
        goal, unit, block, check = self._goal, self._products.unit or 1.0, self._block, None
        beyond = self._beyond
        if self._search is not None:
            block, check = self._search.block, self._search.summary()
            beyond = self._known_beyond(self._search)
        if block is None:
            assert self._lanczos is not None
            block, beyond = wanted_pairs(self._lanczos, self._lanczos.ritz(), goal)
        self._span.cover(block.values)
        bounds = angles(block.values, block.residuals, beyond)
        converged = block.residuals <= goal.thresholds(block.values, self._span)
        rows = block.vectors.cpu().numpy()
        pairs = [
            Eigenpair(
                float(block.values[i]) * unit,
                rows[i] if rows[i, np.abs(rows[i]).argmax()] > 0 else -rows[i],
                float(block.residuals[i]) * unit,
                bool(converged[i]),
                bounds[i],
            )
            for i in goal.ends(len(block.values))
        ]
        count = min(goal.largest, len(pairs))
        return Spectrum(
            largest=tuple(pairs[len(pairs) - count :][::-1]),
            smallest=tuple(pairs[: len(pairs) - count]),
            width=self._span.width * unit,
            tol=goal.tol,
            products=self._products.count,
            seconds=seconds,
            method=method,
            interrupted=self._interrupted,
            missed_check=check and _in_units(check, unit),
            layout=dict(self._operator.layout),
            residuals=self._residuals,
            mode=self._operator.mode,
            breakdown=self._breakdown,
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

    def _begin(self, start: torch.Tensor | None) -> None:
        state = None if self._saved is None else self._saved.load()
        if state is None or "vectors" not in state:
            self._lanczos = Lanczos(
                self._products,
                self._operator.shape[0],
                self._capacity,
                generator=self._generator,
                dtype=self._operator.vector_dtype,
                device=self._operator.device,
                eps=self._operator.eps,
            )
            if state is None:
                self._lanczos.begin(start)
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


def _in_units(check: MissedCheck, unit: float) -> MissedCheck:
    return replace(check, largest=check.largest * unit, smallest=check.smallest * unit)
