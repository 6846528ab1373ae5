"""Spectra that are made to mislead: no pair is missed, none said to be converged that is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hessian import Spectrum, SymmetricOperator, extreme_eigenpairs

Array = npt.NDArray[np.float64]


class Dense(SymmetricOperator):
    """A matrix as an operator of its dtype."""

    def __init__(self, matrix: Array, dtype: torch.dtype):
        super().__init__(len(matrix), torch.device("cpu"), dtype)
        self.matrix = torch.as_tensor(matrix, dtype=dtype)

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self.matrix


def _clusters(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(rng.choice(rng.normal(size=5), n) + 1e-4 * rng.normal(size=n))


def _multiple(rng: np.random.Generator, n: int) -> Array:
    values = np.sort(rng.normal(size=n))
    values[-n // 4 :], values[: n // 6] = values[-1], values[0]
    return values


def _few_distinct(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(rng.choice([-2.0, -1.0, 0.0, 0.5, 3.0], n))


def _hidden(rng: np.random.Generator, n: int) -> Array:
    """Pairs of eigenvalues 1e-7 apart at both ends."""
    values = rng.uniform(-1, 1, n)
    values[:4], values[4:8] = (2, 2 + 1e-7, 1.9, 1.9 - 1e-7), (-2, -2 - 1e-7, -1.8, -1.8)
    return values


def _network(rng: np.random.Generator, n: int) -> Array:
    values = 0.02 * rng.normal(size=n)
    values[:10], values[10:16] = 100 * np.arange(1, 11) ** -1.5, -0.5 * np.arange(1, 7) ** -0.5
    return values


FAMILIES: list[Callable[[np.random.Generator, int], Array]] = [
    _clusters,
    _multiple,
    _few_distinct,
    _hidden,
    _network,
    lambda rng, n: rng.normal(size=n),
    lambda rng, n: np.geomspace(1, 1e-12, n),  # graded
    lambda rng, n: np.geomspace(1, 1e-12, n) * rng.choice([-1, 1], n),
    lambda rng, n: -np.geomspace(1, 1e-6, n),
    lambda rng, n: 1000 + rng.normal(size=n),  # shifted
    lambda rng, n: -50 + 0.1 * rng.normal(size=n),
    lambda rng, n: np.arange(n, dtype=np.float64),
    lambda rng, n: np.cos(np.pi * (np.arange(n) + 0.5) / n),  # dense at the ends
    lambda rng, n: np.r_[np.zeros(n - 6), 1, 1, 1, 2, -1, -1],  # low rank, multiple
    lambda rng, n: np.r_[np.ones(n - 2), 5, -5],
    lambda rng, n: rng.normal(size=n) ** 2,  # positive, dense at zero
    lambda rng, n: rng.standard_cauchy(n),
    lambda rng, n: np.sign(rng.normal(size=n)) * 2.0 ** -np.arange(n),
    lambda rng, n: np.r_[10 + 1e-3 * np.arange(n // 2), -1e-3 * np.arange(n - n // 2)],
    lambda rng, n: np.r_[0.0, rng.uniform(5, 6, n - 1)],  # a single one far below
]
SIZES = (20, 47, 90, 160, 260, 330)
SCALES = (1.0, 1e12, 1e-12)


def check(family: int, size: int, dtype: torch.dtype, tol: float) -> Spectrum:
    """One matrix, its truth by LAPACK in float64."""
    seed = 1000 * family + size
    rng = np.random.default_rng(seed)
    scale = SCALES[(family + SIZES.index(size)) % len(SCALES)]
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    matrix = (basis * (scale * FAMILIES[family](rng, size))) @ basis.T
    matrix = (matrix + matrix.T) / 2
    operator = Dense(matrix, dtype)
    exact, vectors = np.linalg.eigh(operator.matrix.double().numpy())  # as rounded to its dtype
    largest, smallest = int(rng.integers(0, 10)), int(rng.integers(1, 5))
    spectrum = extreme_eigenpairs(operator, largest, smallest, tol=tol, seed=seed)
    width, norm = exact[-1] - exact[0], np.abs(exact).max()
    rounding = 10 * torch.finfo(dtype).eps * norm
    assert spectrum.converged
    assert spectrum.width <= width + rounding + 1e-14 * norm
    wanted = [*range(smallest), *range(size - 1, size - 1 - largest, -1)]
    for pair, i in zip((*spectrum.smallest, *spectrum.largest), wanted, strict=True):
        assert abs(pair.value - exact[i]) <= max(tol * width, rounding)
        v = pair.vector.astype(np.float64)
        residual = float(np.linalg.norm(operator.matrix.double().numpy() @ v - pair.value * v))
        assert residual <= pair.residual + rounding / 3
        assert residual <= 1.01 * max(tol * width, rounding)
        assert residual <= 1.01 * max(0.1 * abs(pair.value), tol * width - abs(pair.value), rounding)
        assert pair.angle is not None
        if pair.angle < math.pi / 2:
            # To a true eigenvector, not always that of rank i; equal eigenvalues have many.
            squares = (v @ vectors) ** 2
            near = np.abs(exact - exact[squares.argmax()]) <= rounding
            assert math.acos(min(1, squares[near].sum() ** 0.5)) <= 1.01 * pair.angle + 1e-3
    return spectrum


ALL = [(family, size) for family in range(len(FAMILIES)) for size in SIZES]


@pytest.mark.parametrize("family", range(len(FAMILIES)))
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-3), (torch.float32, 1e-4)])
def test_one_of_each_family(family: int, dtype: torch.dtype, tol: float) -> None:
    check(family, SIZES[family % 4], dtype, tol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tol"),
    [(torch.float64, tol) for tol in (1e-2, 1e-3, 1e-6)]
    + [(torch.float32, tol) for tol in (1e-2, 1e-3, 1e-5)],
)
@pytest.mark.parametrize(("family", "size"), ALL)
def test_all_of_them(family: int, size: int, dtype: torch.dtype, tol: float) -> None:
    check(family, size, dtype, tol)
