"""The thick-restart basis, and the arithmetic below it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hessian.spectrum.krylov_basis import KrylovBasis, ends
from hessian.spectrum.tall import combine, gram, inner, squared_norms, subtract
from thermoscope.errors import HessianError


def _lanczos(matrix: torch.Tensor, capacity: int, locked: torch.Tensor | None = None) -> KrylovBasis:
    return KrylovBasis(
        lambda rows: rows @ matrix,
        len(matrix),
        capacity,
        generator=torch.Generator().manual_seed(0),
        dtype=matrix.dtype,
        device=matrix.device,
        locked=locked,
    )


def _symmetric(size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (matrix + matrix.T).to(dtype)


def _assert_invariant(lanczos: KrylovBasis, matrix: torch.Tensor, accuracy: float) -> None:
    """A V^T = V^T T + next coupling^T with orthonormal rows."""
    size = lanczos.size
    basis = lanczos.vectors(np.eye(size))
    rows = torch.as_tensor(lanczos.state()["basis"])
    expected = torch.as_tensor(lanczos.projected[:size, :size], dtype=matrix.dtype) @ basis
    if len(rows) > size:
        expected += torch.as_tensor(lanczos.coupling, dtype=matrix.dtype)[:, None] * rows[size]
    assert float((basis @ matrix - expected).abs().max()) < accuracy * float(
        torch.linalg.matrix_norm(matrix, 2)
    )
    assert np.abs(gram(rows, rows) - np.eye(len(rows))).max() < accuracy


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_invariant_holds_before_and_after_restarts(dtype: torch.dtype, accuracy: float) -> None:
    matrix = _symmetric(60, dtype)
    lanczos = _lanczos(matrix, 20)
    lanczos.begin()
    for _ in range(5):
        while not lanczos.full:
            lanczos.step()
        _assert_invariant(lanczos, matrix, accuracy)
        lanczos.restart(lanczos.ritz(), ends(lanczos.size, 5, 4))
        assert lanczos.size == 9
        _assert_invariant(lanczos, matrix, accuracy)
        assert lanczos.change() < accuracy * 100


def test_the_estimated_residuals_are_the_true_ones() -> None:
    matrix = _symmetric(60)
    lanczos = _lanczos(matrix, 20)
    lanczos.begin()
    for step in range(50):
        if lanczos.full:
            lanczos.restart(lanczos.ritz(), ends(lanczos.size, 5, 4))
        lanczos.step()
        ritz = lanczos.ritz()
        vectors = lanczos.vectors(ritz.coefficients)
        true = (vectors @ matrix - torch.as_tensor(ritz.values)[:, None] * vectors).norm(dim=1)
        np.testing.assert_allclose(ritz.residuals, true, rtol=1e-8, atol=1e-11, err_msg=str(step))


def test_an_invariant_subspace_is_left_by_a_new_direction() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, -2.0], dtype=torch.float64))
    lanczos = _lanczos(matrix, 6)
    lanczos.begin()
    while not lanczos.exhausted:
        lanczos.step()
    np.testing.assert_allclose(lanczos.ritz().values, [-2, 1, 1, 3, 3, 3], atol=1e-14)
    assert not lanczos.coupling.any()


def test_locked_rows_are_never_seen() -> None:
    matrix = _symmetric(40)
    values, vectors = torch.linalg.eigh(matrix)
    lanczos = _lanczos(matrix, 40, locked=vectors.T[-3:].contiguous())
    lanczos.begin(vectors[:, -1] + vectors[:, 0])
    while not lanczos.exhausted:
        lanczos.step()
    np.testing.assert_allclose(lanczos.ritz().values, values[:-3], atol=1e-12)


def test_a_state_continues_where_it_was_taken() -> None:
    matrix = _symmetric(50)
    one, two = _lanczos(matrix, 12), _lanczos(matrix, 12)
    one.begin()
    for _ in range(8):
        one.step()
    two.load_state(one.state())
    for _ in range(4):
        one.step()
        two.step()
    np.testing.assert_array_equal(one.projected, two.projected)


def test_ends_never_name_an_index_twice() -> None:
    assert ends(10, 3, 2).tolist() == [0, 1, 7, 8, 9]
    assert ends(4, 3, 2).tolist() == [0, 1, 2, 3]
    assert ends(2, 3, 2).tolist() == [0, 1]
    assert ends(3, 0, 1).tolist() == [0]


def test_arithmetic_over_chunks_is_accurate_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 100_001, generator=generator) + 1
    vector = torch.randn(100_001, generator=generator) + 1
    exact, exact_vector = rows.double(), vector.double()
    scale = float(exact[0].norm() * exact_vector.norm())
    np.testing.assert_allclose(inner(rows, vector), exact @ exact_vector, atol=1e-7 * scale)
    np.testing.assert_allclose(gram(rows, rows), exact @ exact.T, rtol=1e-12)
    factors = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(combine(rows, factors), torch.as_tensor(factors.T) @ exact, atol=1e-5)
    norms = squared_norms(rows, rows.flip(0), np.arange(5.0))
    expected = (exact - torch.arange(5.0)[:, None] * exact.flip(0)).square().sum(1)
    np.testing.assert_allclose(norms, expected, rtol=1e-12)
    coefficients = torch.arange(5.0, dtype=torch.float64)
    left, square = subtract(vector, rows, coefficients)
    rest = exact_vector - coefficients @ exact
    np.testing.assert_allclose(vector, rest, atol=1e-5)
    np.testing.assert_allclose(left, exact @ rest, atol=1e-6 * scale)
    assert float(square) == pytest.approx(float(rest @ rest), rel=1e-5)


@pytest.mark.parametrize("inference", [False, True])
def test_long_rows_are_shared_among_threads_and_keep_their_digits(inference: bool) -> None:
    with torch.inference_mode(inference):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(16, 400_001, generator=generator)
        vector = torch.randn(400_001, generator=generator)
        coefficients = torch.arange(16, dtype=torch.float64) / 16
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                rest = vector.clone()
                found.append([inner(rows, vector), *subtract(rest, rows, coefficients), rest])
        finally:
            torch.set_num_threads(before)
        for one, three in zip(*found, strict=True):
            assert torch.equal(one, three)
        exact, scale = rows.double(), float(rows[0].norm() * vector.norm())
        np.testing.assert_allclose(found[1][0], exact @ vector.double(), atol=1e-7 * scale)
        np.testing.assert_allclose(found[1][3], vector.double() - coefficients @ exact, atol=1e-5)
        np.testing.assert_allclose(
            found[1][1], exact @ (vector.double() - coefficients @ exact), atol=1e-6 * scale
        )


def test_a_start_in_the_span_of_the_locked_rows_is_replaced() -> None:
    matrix = _symmetric(12)
    locked = torch.eye(12, dtype=torch.float64)[:2]
    lanczos = _lanczos(matrix, 8, locked=locked)
    lanczos.begin(locked[0])
    (row,) = torch.as_tensor(lanczos.state()["basis"])
    assert float(row.norm()) == pytest.approx(1)
    assert not (locked @ row).abs().max() > 1e-14


def test_an_asymmetry_is_named_also_where_products_differ_by_rounding() -> None:
    skew = np.triu(np.ones((9, 9)), 1) - np.triu(np.ones((9, 9)), 1).T
    calls = 0

    def multiply(rows: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return rows @ torch.as_tensor(skew) * (1 + 1e-12 * calls)

    lanczos = KrylovBasis(
        multiply,
        9,
        9,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    lanczos.begin()
    lanczos.step()
    with pytest.raises(HessianError, match="not symmetric"):
        lanczos.step()
