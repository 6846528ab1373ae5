"""Thick-restart Lanczos: a basis that grows by one product at a time and shrinks to what it is wanted for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from thermoscope.errors import HessianError

from .tall import Matrix, combine, combine_in_place, inner, subtract

__all__ = ["KrylovBasis", "Ritz", "check_symmetry", "ends"]

Multiply = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Ritz:
    """The eigenpairs of the projected matrix: estimates of those of the operator.

    Attributes:
        values: ascending, shape (m,).
        coefficients: of the Ritz vectors in the basis, one per column, shape (m, m).
        residuals: ||A y - value y|| as Lanczos knows it, without a product; shape (m,).
        scale: the largest ||A v|| seen: a lower bound of the operator's norm.
    """

    values: Matrix
    coefficients: Matrix
    residuals: Matrix
    scale: float

    @property
    def width(self) -> float:
        """The largest Ritz value minus the smallest."""
        return float(self.values[-1] - self.values[0])


def ends(size: int, largest: int, smallest: int) -> npt.NDArray[np.int64]:
    """Where the `smallest` first and the `largest` last of `size` ascending values are; no index twice."""
    largest = min(largest, size)
    return np.concatenate([np.arange(min(smallest, size - largest)), np.arange(size - largest, size)])


def check_symmetry(difference: float, scale: float, eps: float) -> None:
    """Whether <A u, v> and <u, A v> differ by rounding only, u and v of length 1.

    Args:
        difference: between the two.
        scale: the norm of A, as far as known.
        eps: relative rounding of a product. Half of its digits may be lost.

    Raises:
        HessianError: if not.
    """
    if difference > eps**0.5 * scale:
        raise HessianError(
            f"the operator is not symmetric: <A u, v> and <u, A v> differ by {difference / scale:.1e} of its "
            f"norm (rounding explains {eps**0.5:.0e} at most); of a matrix A, (A + A.T) / 2 is symmetric."
        )


class KrylovBasis:
    """An orthonormal basis V, grown as a Krylov space, and the operator A seen in it, V A V^T.

    Invariant: A V^T = V^T T + next coupling^T, with T the projected matrix (m, m), `next` the unit vector
    that is multiplied next, and `coupling` (m,). In plain Lanczos coupling = (0, ..., 0, beta); after a
    restart (Wu and Simon 2000) it is dense. Neither needs code of its own: T's next column is what
    orthogonalising the next product against the whole basis measures anyway.

    The invariant says that <next, A v> = coupling . v before `next` is multiplied, and the product then says
    what <A next, v> is: each step is a test of the operator's symmetry, for nothing.

    Args:
        multiply: the product with a block of rows.
        size: n.
        capacity: the most basis vectors before a restart.
        generator: on the CPU, for the start vector and for a new direction when the space is exhausted.
        locked: orthonormal rows (p, n): everything happens in their orthogonal complement.
        eps: relative rounding of a product; by default that of `dtype`.
    """

    def __init__(
        self,
        multiply: Multiply,
        size: int,
        capacity: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
        locked: torch.Tensor | None = None,
        eps: float | None = None,
    ):
        self._multiply, self._generator = multiply, generator
        self._eps = torch.finfo(dtype).eps if eps is None else eps
        self.locked = 0 if locked is None else len(locked)
        self.capacity = min(capacity, size - self.locked)
        rows = min(self.locked + self.capacity + 1, size)
        self._rows = torch.empty(rows, size, dtype=dtype, device=device)
        if locked is not None:
            self._rows[: self.locked] = locked
        self.size = 0  # vectors whose product is in `projected`; the next one is already in its row
        self.projected: Matrix = np.zeros((self.capacity, self.capacity))
        self.coupling: Matrix = np.zeros(0)
        self.scale = 0.0
        self.restarts = 0
        self.intact = True

    @property
    def dimension(self) -> int:
        """n."""
        return int(self._rows.shape[1])

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space: the Ritz pairs are then the eigenpairs."""
        return self.locked + self.size == self._rows.shape[1]

    @property
    def full(self) -> bool:
        """Whether `restart` has to come before the next step."""
        return self.size == self.capacity

    def begin(self, vector: torch.Tensor | None = None) -> None:
        """Start from a vector (n,), or a random one; in the complement of the locked rows."""
        if vector is None or not self._place_next(vector.to(self._rows), 0.0):
            self._place_random()

    def step(self) -> None:
        """One product: the basis has one vector more.

        Raises:
            HessianError: if it shows that the operator is not symmetric, or is another one each time.
        """
        end = self.locked + self.size + 1
        product = self._multiply(self._rows[end - 1 : end])[0]
        column, rest = _orthogonalise(product, self._rows[:end])
        self.scale = max(self.scale, float(np.hypot(np.linalg.norm(column), rest)))
        column = column[self.locked :]
        self._check_symmetry(float(np.linalg.norm(column[:-1] - self.coupling)), self._rows[end - 1 : end])
        self.projected[: self.size + 1, self.size] = column
        self.projected[self.size, : self.size + 1] = column
        coupling = np.zeros(self.size + 1)
        if end < self._rows.shape[1]:
            # A remainder at the level of rounding is no direction: the basis is an invariant subspace.
            if rest > 10 * self._eps * self.scale:
                self._rows[end] = product / rest
                coupling[-1] = rest
            else:
                self._place_random(end)
        self.size, self.coupling = self.size + 1, coupling

    def ritz(self) -> Ritz:
        """The Ritz pairs of the basis so far, in float64."""
        # By torch: the threads of NumPy's own BLAS would go on spinning for a while, in the way of the next
        # product, which then takes twice as long.
        projected = torch.as_tensor(self.projected[: self.size, : self.size])
        values, coefficients = (part.numpy() for part in torch.linalg.eigh(projected))
        return Ritz(values, coefficients, np.abs(self.coupling @ coefficients), self.scale)

    def vectors(self, coefficients: Matrix) -> torch.Tensor:
        """The Ritz vectors with these coefficients (m, p), as new rows (p, n)."""
        return combine(self._basis, coefficients)

    def products(self, ritz: Ritz, vectors: torch.Tensor, which: npt.NDArray[np.int64]) -> torch.Tensor:
        """A times the Ritz `vectors` at the indices `which`, as the invariant has it: without a product."""
        values = torch.as_tensor(ritz.values[which], dtype=vectors.dtype, device=vectors.device)
        products = vectors * values[:, None]
        end = self.locked + self.size
        if end < len(self._rows):
            coupling = torch.as_tensor(self.coupling @ ritz.coefficients[:, which]).to(vectors)
            products.addr_(coupling, self._rows[end])
        return products

    def restart(self, ritz: Ritz, keep: npt.NDArray[np.int64]) -> None:
        """Replace the basis by the Ritz vectors at the indices `keep`; the next vector stays the next."""
        self.intact = False
        coefficients, end = ritz.coefficients[:, keep], self.locked + self.size
        combine_in_place(self._basis, coefficients)
        coupling = self.coupling @ coefficients
        self._rows[self.locked + len(keep)] = self._rows[end]
        self.projected[:] = 0
        self.projected[: len(keep), : len(keep)] = np.diag(ritz.values[keep])
        self.size, self.coupling = len(keep), coupling
        self.restarts += 1
        self.intact = True

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything `load_state` needs to continue, as arrays."""
        used = slice(self.locked, min(self.locked + self.size + 1, len(self._rows)))
        return {
            "basis": self._rows[used].cpu().numpy(),
            "projected": self.projected[: self.size, : self.size],
            "coupling": self.coupling,
            "scale": np.array(self.scale),
            "restarts": np.array(self.restarts),
        }

    def load_state(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Continue where `state` was taken."""
        basis = torch.as_tensor(state["basis"])
        self._rows[self.locked : self.locked + len(basis)] = basis
        self.size = len(state["coupling"])
        self.projected[: self.size, : self.size] = state["projected"]
        self.coupling = np.asarray(state["coupling"], np.float64)
        self.scale, self.restarts = float(state["scale"]), int(state["restarts"])

    def change(self) -> float:
        """How far the invariant is from true for the sum of the basis vectors; costs a product."""
        weights = np.full(self.size, self.size**-0.5)
        end = self.locked + self.size
        vector = self.vectors(weights[:, None])
        product = self._multiply(vector)[0]
        expected = torch.as_tensor(self.projected[: self.size, : self.size] @ weights, device=product.device)
        _, square = subtract(product, self._basis, expected)
        if end < len(self._rows):
            next_weight = torch.as_tensor([self.coupling @ weights], device=product.device)
            _, square = subtract(product, self._rows[end : end + 1], next_weight)
        return float(square.sqrt())

    def _check_symmetry(self, difference: float, row: torch.Tensor) -> None:
        try:
            check_symmetry(difference, self.scale, self._eps)
        except HessianError:
            change = float((self._multiply(row) - self._multiply(row)).double().norm())
            if change > self._eps**0.5 * self.scale:
                raise HessianError(
                    f"two products of the operator with one vector differ by {change / self.scale:.1e} of "
                    f"its norm; switch off whatever is random in it, and give it data that stay the same."
                ) from None
            raise

    @property
    def _basis(self) -> torch.Tensor:
        return self._rows[self.locked : self.locked + self.size]

    def _place_next(self, vector: torch.Tensor, floor: float, end: int | None = None) -> bool:
        """Put what is new in `vector` into row `end`, unless that is no longer than `floor`."""
        end = self.locked if end is None else end
        vector = vector / vector.double().norm()
        _, rest = _orthogonalise(vector, self._rows[:end])
        if not rest > floor:
            return False
        self._rows[end] = vector / rest
        return True

    def _place_random(self, end: int | None = None) -> None:
        # Two tries are enough with probability 1; the loop guards against a nearly complete basis.
        for _ in range(10):
            vector = torch.randn(self._rows.shape[1], generator=self._generator, dtype=torch.float64)
            if self._place_next(vector.to(self._rows), 1e-6, end):
                return


def _orthogonalise(vector: torch.Tensor, rows: torch.Tensor) -> tuple[Matrix, float]:
    """Make `vector` orthogonal to the orthonormal `rows`, in place.

    Classical Gram-Schmidt, repeated until what is left is seen to be orthogonal to ten roundings; `twice is
    enough' (Kahan, in Parlett 1980) unless the vector lies in the rows' span.

    Returns:
        The coefficients that were taken off, and the norm of what is left, both in float64.
    """
    coefficients = left = inner(rows, vector)
    target = 10 * torch.finfo(rows.dtype).eps
    norm = torch.zeros(())
    for _ in range(5):
        left, square = subtract(vector, rows, left)
        norm = square.sqrt()
        if not len(rows) or float(left.abs().max()) <= target * float(norm):
            break
        coefficients = coefficients + left
    return np.asarray(coefficients.cpu().numpy()), float(norm)
