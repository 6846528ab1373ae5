"""Hutch++ and the Frobenius norm, against matrices whose trace and norm are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessian.products.symmetric import SymmetricOperator, as_operator
from hessian.spectrum.trace import Estimate, _orthonormal, frobenius_norm, trace
from thermoscope.errors import HessianError

from .cases import CASES, dense


class Single(SymmetricOperator):
    """A matrix in float32."""

    def __init__(self, matrix: np.ndarray):
        super().__init__(len(matrix), torch.device("cpu"), torch.float32)
        self._matrix = torch.as_tensor(matrix, dtype=torch.float32)

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors @ self._matrix


class SingleDiagonal(SymmetricOperator):
    """A diagonal matrix in float32."""

    def __init__(self, values: np.ndarray):
        super().__init__(len(values), torch.device("cpu"), torch.float32)
        self._values = torch.as_tensor(values)

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors * self._values


def _conjugate(values: np.ndarray) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((len(values), len(values))))[0]
    return (q * values) @ q.T


def _decaying(size: int) -> np.ndarray:
    """Eigenvalues of both signs that fall like 1 / i^2."""
    return np.where(np.arange(size) % 3, 1.0, -0.5) / np.arange(1, size + 1) ** 2


def _assert_honest(estimates: list[Estimate], truth: float) -> float:
    """No bias to four standard errors, and the reported standard error is the scatter; returns that."""
    values = np.array([e.value for e in estimates])
    scatter = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4 * scatter / np.sqrt(len(values))
    reported = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
    assert 0.8 < reported / scatter < 1.25
    return float(scatter)


@pytest.mark.parametrize("size", [1, 2, 5, 20, 33])
@pytest.mark.parametrize("extra", [0, 1, 40])
@pytest.mark.parametrize("wrap", [as_operator, Single])
def test_exact_with_as_many_products_as_dimensions(
    size: int, extra: int, wrap: Callable[[np.ndarray], SymmetricOperator]
) -> None:
    matrix, accuracy = _conjugate(np.linspace(-1, 4, size)), 1e-12
    if wrap is Single:
        matrix, accuracy = matrix.astype(np.float32).astype(np.float64), 1e-5
    for estimate, truth in [(trace, np.trace(matrix)), (frobenius_norm, np.linalg.norm(matrix))]:
        operator = wrap(matrix)
        found = estimate(operator, products=size + extra)
        assert found.value == pytest.approx(truth, rel=accuracy)
        assert found.standard_error == 0
        assert operator.products == size


def test_exact_for_the_hessian_of_a_network() -> None:
    case = CASES[0]
    hessian = dense(case, case.model())[2]
    operator = case.loss().hessian()
    assert trace(operator, products=len(hessian)).value == pytest.approx(np.trace(hessian), rel=1e-9)
    estimate = trace(operator, products=30)
    assert abs(estimate.value - np.trace(hessian)) < 5 * estimate.standard_error
    norm = frobenius_norm(operator, products=len(hessian))
    assert norm.value == pytest.approx(np.linalg.norm(hessian), rel=1e-9)


@given(size=st.integers(1, 60), products=st.integers(1, 70), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_never_more_products_than_allowed(size: int, products: int, seed: int) -> None:
    for estimate, least in [(trace, 6), (frobenius_norm, 2)]:
        operator = as_operator(np.diag(np.random.default_rng(seed).standard_normal(size)))
        if products < min(size, least):
            with pytest.raises(HessianError, match="too few"):
                estimate(operator, products=products, seed=seed)
            assert operator.products == 0
        else:
            found = estimate(operator, products=products, seed=seed)
            assert operator.products == min(size, products)
            assert np.isfinite([found.value, found.standard_error]).all()


@pytest.mark.parametrize("products", [6, 13, 30])
@pytest.mark.parametrize("wrap", [as_operator, Single])
def test_unbiased_with_an_honest_error(
    products: int, wrap: Callable[[np.ndarray], SymmetricOperator]
) -> None:
    values = _decaying(50)
    operator = wrap(_conjugate(values))
    _assert_honest([trace(operator, products=products, seed=seed) for seed in range(250)], values.sum())


def test_the_variance_is_below_that_of_hutchinson_on_a_decaying_spectrum() -> None:
    values = _decaying(50)
    matrix = _conjugate(values)
    scatter = _assert_honest([trace(matrix, products=30, seed=seed) for seed in range(200)], values.sum())
    # With 30 random signs instead, each sample has this variance.
    hutchinson = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / 30)
    assert scatter < hutchinson / 10


@pytest.mark.parametrize(("wrap", "accuracy"), [(as_operator, 1e-12), (Single, 3e-6)])
def test_a_low_rank_is_captured_whole(
    wrap: Callable[[np.ndarray], SymmetricOperator], accuracy: float
) -> None:
    values = np.r_[5.0, 3.0, -1.0, 0.5, np.zeros(96)]
    found = trace(wrap(_conjugate(values)), products=18)
    assert found.value == pytest.approx(7.5, abs=5 * accuracy)
    assert found.standard_error < accuracy


def test_many_small_entries_in_float32_are_not_lost_beside_a_large_one() -> None:
    """Added up in float32, the squares of the small ones would vanish."""
    values = np.full(4000, 1e-3, np.float32)
    values[0] = 1e3
    # A diagonal matrix has the same product with all random signs, but for theirs.
    square = frobenius_norm(SingleDiagonal(values), products=2).value ** 2
    assert square - 1e6 == pytest.approx((values[1:].astype(np.float64) ** 2).sum(), rel=1e-3)


def test_a_zero_matrix() -> None:
    for estimate in (trace, frobenius_norm):
        assert estimate(np.zeros((40, 40)), products=12) == Estimate(0.0, 0.0)


def test_the_basis_is_orthonormal_in_float32_and_spans_the_rows() -> None:
    rows = torch.randn(9, 300_000, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0] + 1e-4 * rows[1]  # nearly the same
    rows[2] = rows[3]  # the same
    basis = _orthonormal(rows.clone()).double()
    assert len(basis) == 8
    assert float((basis @ basis.T - torch.eye(8)).abs().max()) < 1e-8
    left = rows.double() - rows.double() @ basis.T @ basis
    assert float((left.norm(dim=1) / rows.norm(dim=1)).max()) < 1e-5


@pytest.mark.parametrize("products", [2, 10, 29])
def test_the_square_of_the_frobenius_norm_is_unbiased(products: int) -> None:
    matrix = _conjugate(np.random.default_rng(5).standard_normal(30))
    estimates = [frobenius_norm(matrix, products=products, seed=seed) for seed in range(300)]
    squares = [Estimate(e.value**2, 2 * e.value * e.standard_error) for e in estimates]
    _assert_honest(squares, float((matrix**2).sum()))


def test_the_error_of_the_frobenius_norm_is_honest() -> None:
    matrix = _conjugate(np.random.default_rng(5).standard_normal(30))
    estimates = [frobenius_norm(matrix, products=25, seed=seed) for seed in range(300)]
    values = np.array([e.value for e in estimates])
    reported = np.sqrt(np.mean([e.standard_error**2 for e in estimates]))
    assert 0.8 < reported / values.std() < 1.25
    bias = reported**2 / (2 * np.linalg.norm(matrix))
    assert abs(values.mean() - np.linalg.norm(matrix)) < bias + 4 * values.std() / np.sqrt(300)


def test_samples_make_an_estimate() -> None:
    assert Estimate.from_samples([1.0, 3.0]) == Estimate(2.0, 1.0)
    single = Estimate.from_samples([4.0])
    assert single.value == 4
    assert np.isnan(single.standard_error)


@pytest.mark.parametrize("estimate", [trace, frobenius_norm])
def test_the_seed_alone_decides_and_global_streams_are_untouched(
    estimate: Callable[..., Estimate],
) -> None:
    matrix = _conjugate(np.random.default_rng(5).standard_normal(30))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (estimate(matrix, products=12, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert first == again != other


@pytest.mark.parametrize("estimate", [trace, frobenius_norm])
def test_what_cannot_be_estimated_is_refused(estimate: Callable[..., Estimate]) -> None:
    with pytest.raises(HessianError, match="too few"):
        estimate(np.eye(30), products=1)
    with pytest.raises(HessianError, match="not finite"):
        estimate(np.diag([1.0, np.nan, 2.0]))
    with pytest.raises(HessianError, match="square"):
        estimate(np.zeros((3, 4)))
