"""The extreme eigenpairs of a symmetric operator, both ends in one run, with proof of what they are."""

from __future__ import annotations

import os
import time
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from .block import Block, polished, rayleigh_ritz
from .errors import HessianError
from .lanczos import Lanczos, Ritz, ends
from .missed import Goal, MissedSearch
from .operator import SymmetricOperator, as_operator
from .products import Products
from .reference import eigsh_block
from .request import basis_capacity, checked_goal, start_vector
from .results import Eigenpair, Spectrum
from .rows import Matrix
from .saved_run import Arrays, SavedRun

__all__ = ["extreme_eigenpairs"]

# The share of the room beyond the wanted pairs that is kept at a restart: fewest products for spectra like
# a network's and for random matrices; 0.3 to 0.5 are much the same.
_KEEP = 0.4


def extreme_eigenpairs(
    operator: object,
    largest: int = 1,
    smallest: int = 1,
    *,
    tol: float = 1e-3,
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

    One thick-restart Lanczos run (Wu and Simon 2000) with full orthogonalisation serves both ends. Every pair
    that is returned has a true residual, from a product made for this purpose; a second run then looks for
    pairs that the first has missed. Ctrl-C returns the pairs so far.

    Args:
        operator: a `SymmetricOperator`, or a symmetric array, tensor or scipy `LinearOperator`.
        largest: how many of the largest eigenvalues; 0 for none.
        smallest: how many of the smallest (the most negative ones); 0 for none.
        tol: a pair has converged when ||A v - lambda v|| <= tol x (largest - smallest eigenvalue).
        max_products: a budget; when it is used up, the pairs are returned as they are. At least two per pair.
            ("lanczos" only, as are `save_to` and the answer to Ctrl-C.)
        max_basis: Lanczos vectors kept in memory; more of them save products. By default 160, or three times
            the pairs and 40, if that fits into 2 GiB.
        start: vectors close to the wanted ones save products: the `Spectrum` of another snapshot, eigenpairs,
            or vectors as rows.
        seed: of the random start vectors; the global random streams are not touched.
        method: "eigsh" calls scipy's solver once for each end; takes more products.
        check: look for missed pairs ("lanczos" only).
        save_to: a file for the state of an unfinished run: written at every restart, about every minute, and
            when anything ends the run early; the same call then continues from it. Removed at the end.
        progress: show a progress bar.

    Raises:
        HessianError: if the request is impossible, if a product is not finite, or if `save_to` is damaged or
            belongs to another computation.
    """
    began = time.monotonic()
    operator = as_operator(operator)
    goal = checked_goal(operator, largest, smallest, tol, max_products)
    capacity = basis_capacity(operator, goal.wanted, max_basis)
    if method not in ("lanczos", "eigsh"):
        raise HessianError(f'method="{method}" is unknown; the methods are "lanczos" and "eigsh".')
    saved = None
    if save_to is not None:
        request = {
            "size": operator.shape[0], "dtype": str(operator.vector_dtype), "largest": largest,
            "smallest": smallest, "tol": tol, "basis": capacity, "seed": seed, "method": method,
        }  # fmt: skip
        saved = SavedRun(save_to, request)
    with Products(operator, max_products, progress) as products:
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
        self._generator = torch.Generator().manual_seed(seed)
        self._lanczos: Lanczos | None = None
        self._block: Block | None = None
        self._search: MissedSearch | None = None
        self._range = (np.inf, -np.inf)  # smallest and largest Ritz value seen
        self._interrupted = False

    def reference(self, start: torch.Tensor | None, max_basis: int | None) -> None:
        """`method="eigsh"`."""
        if start is None:
            start = torch.randn(self._operator.shape[0], generator=self._generator, dtype=torch.float64)
        self._block = eigsh_block(self._products, self._operator, self._goal, start, max_basis)

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
        goal, block, check = self._goal, self._block, None
        if self._search is not None:
            block, check = self._search.block, self._search.summary()
        if block is not None:
            values, residuals, vectors = block.values, block.residuals, block.vectors
            kept = goal.ends(len(values))
        else:
            assert self._lanczos is not None
            ritz = self._lanczos.ritz()
            kept = goal.ends(len(ritz.values))
            values, residuals = ritz.values[kept], ritz.residuals[kept]
            vectors, kept = self._lanczos.vectors(ritz.coefficients[:, kept]), np.arange(len(kept))
        width, threshold = self._measure(values)
        rows = vectors.cpu().numpy()
        pairs = [
            Eigenpair(float(values[i]), rows[i], float(residuals[i]), bool(residuals[i] <= threshold))
            for i in kept
        ]
        count = min(goal.largest, len(pairs))
        return Spectrum(
            largest=tuple(pairs[len(pairs) - count :][::-1]),
            smallest=tuple(pairs[: len(pairs) - count]),
            width=width,
            tol=goal.tol,
            products=self._products.count,
            seconds=seconds,
            method=method,
            interrupted=self._interrupted,
            missed_check=check,
            layout=dict(self._operator.layout),
        )

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
        ritz, satisfied = self._grow(self._lanczos)
        vectors = self._lanczos.vectors(ritz.coefficients[:, self._goal.ends(len(ritz.values))])
        block = rayleigh_ritz(vectors, self._products(vectors))
        if satisfied:
            threshold = self._measure(block.values)[1]
            block = polished(block, self._goal.ends, threshold, self._products, lambda: self._products.left)
            self._lanczos = None
        self._block = block
        self._save()
        return satisfied

    def _grow(self, lanczos: Lanczos) -> tuple[Ritz, bool]:
        """Lanczos until its own estimates of the residuals are below tol: True; False if products run out."""
        goal, pause = self._goal, self._goal.wanted - lanczos.size
        while True:
            spent = self._products.left <= goal.wanted  # the rest is for the true residuals
            if lanczos.size >= goal.wanted:
                ritz = lanczos.ritz()
                width, threshold = self._measure(ritz.values)
                residuals = ritz.residuals[goal.ends(lanczos.size)]
                worst = float(residuals.max())
                done = int((residuals <= threshold).sum())
                self._products.report(done, goal.wanted, worst / (width or 1))
                if done == goal.wanted or lanczos.exhausted or spent:
                    return ritz, done == goal.wanted or lanczos.exhausted
                if lanczos.full:
                    self._save()
                    lanczos.restart(ritz, self._kept(lanczos))
                # A residual hardly ever falls by more than a digit with one product: while it is digits above
                # the goal, decomposing the projected matrix can wait.
                pause = int(np.clip(np.log10(worst / threshold), 1, 10))
            for _ in range(max(pause, 1)):
                if lanczos.full or lanczos.exhausted or self._products.left <= goal.wanted:
                    break
                lanczos.step()
                if self._saved is not None and self._saved.due:
                    self._save()

    def _kept(self, lanczos: Lanczos) -> npt.NDArray[np.int64]:
        """Which Ritz vectors stay at a restart: the wanted ones, and more at each end that speed them up."""
        extra = int(_KEEP * (lanczos.capacity - self._goal.wanted))
        share = self._goal.largest / self._goal.wanted
        upper = round(extra * share)
        return ends(lanczos.size, self._goal.largest + upper, self._goal.smallest + extra - upper)

    def _look_for_missed(self) -> bool:
        assert self._block is not None
        self._search = MissedSearch(
            self._block, self._goal, self._products, self._generator, self._capacity, self._products.count
        )
        return self._search.run()

    def _measure(self, values: Matrix) -> tuple[float, float]:
        """The width of the spectrum, these values included, and the largest residual of a converged pair."""
        low, high = self._range
        self._range = low, high = min(low, float(values.min())), max(high, float(values.max()))
        if self._search is not None and (check := self._search.summary()) is not None:
            low, high = min(low, check.smallest), max(high, check.largest)
        return high - low, self._goal.threshold(high - low, max(abs(low), abs(high)))

    def _save(self) -> None:
        block = self._block if self._search is None else self._search.block
        state: Arrays = {"count": np.array(self._products.count), "range": np.array(self._range)}
        state["generator"] = self._generator.get_state().numpy()
        if self._lanczos is not None:
            if not (self._lanczos.intact and self._lanczos.size):
                return
            state |= self._lanczos.state()
        elif block is not None:
            state |= {"vectors": block.vectors.cpu().numpy(), "products": block.products.cpu().numpy()}
        if self._saved is not None:
            self._saved.save(state)

    def _load(self, state: Arrays) -> None:
        assert self._saved is not None
        operator = self._operator
        try:
            self._products.count = int(state["count"])
            self._range = float(state["range"][0]), float(state["range"][1])
            self._generator.set_state(torch.as_tensor(state["generator"]))
            if self._lanczos is not None:
                self._lanczos.load_state(state)
            else:
                stacks = [
                    torch.as_tensor(state[name]).to(operator.device) for name in ("vectors", "products")
                ]
                self._block = rayleigh_ritz(*stacks)
        # Anything may be wrong with the contents of a file that somebody else has written.
        except Exception as error:
            raise self._saved.damaged() from error
        if self._products.left <= (self._goal.wanted if self._lanczos is not None else 0):
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
