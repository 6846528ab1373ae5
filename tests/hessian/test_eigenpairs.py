"""The extreme eigenpairs against dense eigenvalues, in health and in sickness."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator, eigsh

from hessian.products.symmetric import SymmetricOperator
from hessian.spectrum.checkpoint import SavedRun
from hessian.spectrum.completeness import undetected_share
from hessian.spectrum.eigenpairs import extreme_eigenpairs
from hessian.spectrum.eigsh import Eigsh
from hessian.spectrum.lanczos import Lanczos
from hessian.spectrum.results import MissedCheck, Spectrum
from thermoscope.errors import HessianError

Array = npt.NDArray[np.float64]


class Dense(SymmetricOperator):
    """A matrix as an operator of its dtype that can fail at its p-th product."""

    def __init__(self, matrix: Array, dtype: torch.dtype = torch.float64):
        super().__init__(len(matrix), torch.device("cpu"), dtype)
        self.matrix = torch.as_tensor(matrix, dtype=dtype)
        self.fail_at: int | None = None
        self.failure: Callable[[], BaseException] = RuntimeError

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        if self.fail_at is not None and self.products >= self.fail_at:
            raise self.failure()
        return vectors @ self.matrix


def with_spectrum(values: Array, seed: int = 0) -> Array:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def network(size: int, seed: int = 0) -> Array:
    """Eigenvalues like those of a network's Hessian: some large ones, a bulk at 0, a negative edge."""
    rng = np.random.default_rng(seed)
    large, negative = 100 * np.arange(1, 31) ** -1.2, -1.85 * np.arange(1, 20) ** -0.7
    return np.sort(np.r_[large, negative, 0.05 * rng.normal(size=size - 49)])


def assert_right(spectrum: Spectrum, matrix: Array, largest: int, smallest: int, accuracy: float) -> None:
    """Every wanted pair is there, as often as it should be, with the residual it claims."""
    exact = np.linalg.eigvalsh(matrix)
    atol = accuracy * (exact[-1] - exact[0]) + 1e-12 * np.abs(exact).max()
    assert (len(spectrum.largest), len(spectrum.smallest)) == (largest, smallest)
    np.testing.assert_allclose([p.value for p in spectrum.largest], exact[::-1][:largest], rtol=0, atol=atol)
    np.testing.assert_allclose([p.value for p in spectrum.smallest], exact[:smallest], rtol=0, atol=atol)
    assert spectrum.converged
    for pair in spectrum.pairs:
        residual = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
        # What is said bounds the true one (but for the rounding of the line above), and hardly exceeds it.
        assert residual <= pair.residual + 1e-14 * np.abs(exact).max()
        assert pair.residual <= 1.001 * residual + 2e-12 * np.abs(exact).max()
        assert residual <= atol
    vectors = np.array([pair.vector for pair in spectrum.pairs])
    assert np.abs(vectors @ vectors.T - np.eye(len(vectors))).max() < 1e-10


def _clusters(rng: np.random.Generator, size: int) -> Array:
    centres = rng.normal(size=rng.integers(2, 8))
    return np.asarray(rng.choice(centres, size) + 1e-3 * rng.normal(size=size))


def _multiple(rng: np.random.Generator, size: int) -> Array:
    values = np.sort(rng.normal(size=size))
    values[-3:], values[:2] = values[-1], values[0]
    return values


def _tiny_gaps(rng: np.random.Generator, size: int) -> Array:
    return np.asarray(np.r_[rng.normal(size=size - size // 4), 4 + 1e-4 * np.arange(size // 4)])


def _paper(rng: np.random.Generator, size: int) -> Array:
    count = min(size // 3, 36)
    outliers = np.geomspace(100, 1, count) if count else np.zeros(0)
    edge = -1.85 + 1e-4 * np.arange(min(size - count, 5))
    return np.asarray(np.r_[outliers, edge, 0.05 * rng.normal(size=size - count - len(edge))])


def _low_rank(rng: np.random.Generator, size: int) -> Array:
    values = np.zeros(size)
    rank = rng.integers(0, min(size, 12) + 1)
    values[:rank] = rng.normal(size=rank)
    return values


FAMILIES = [_clusters, _multiple, _tiny_gaps, _paper, _low_rank, lambda rng, size: rng.normal(size=size)]


@pytest.mark.parametrize("case", range(200))
def test_every_wanted_pair_is_found(case: int) -> None:
    rng = np.random.default_rng(case)
    size = case // len(FAMILIES) + 1 if case % 3 == 0 else int(rng.integers(10, 401))
    matrix = with_spectrum(FAMILIES[case % len(FAMILIES)](rng, size), case)
    largest = int(rng.integers(0, min(size, 24) + 1))
    smallest = int(rng.integers(largest == 0, max(min(size - largest, 8), largest == 0) + 1))
    spectrum = extreme_eigenpairs(matrix, largest, smallest, tol=1e-9, seed=case)
    assert_right(spectrum, matrix, largest, smallest, 1e-9)
    assert spectrum.missed_check is not None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.data())
def test_any_diagonal(values: list[float], data: st.DataObject) -> None:
    largest = data.draw(st.integers(0, len(values)))
    smallest = data.draw(st.integers(int(largest == 0), max(len(values) - largest, int(largest == 0))))
    # The squares of numbers below 1e-150 are 0 in float64, and so are their norms.
    matrix = np.diag([value if abs(value) > 1e-100 else 0.0 for value in values])
    assert_right(extreme_eigenpairs(matrix, largest, smallest, tol=1e-8), matrix, largest, smallest, 1e-8)


@pytest.mark.parametrize("max_basis", [26, 40, None])
def test_a_small_basis_restarts_and_finds_the_same(max_basis: int | None) -> None:
    matrix = with_spectrum(network(300))
    spectrum = extreme_eigenpairs(matrix, 20, 3, tol=1e-8, solver=Lanczos(max_basis=max_basis))
    assert_right(spectrum, matrix, 20, 3, 1e-8)


def test_the_negative_edge_of_the_paper() -> None:
    """Eigenvalues 1e-4 apart below a spectrum that is a million times as wide."""
    values = np.r_[np.geomspace(100, 1, 36), -1.85 + 1e-4 * np.arange(6), np.zeros(100)]
    matrix = with_spectrum(values)
    spectrum = extreme_eigenpairs(matrix, 20, 4, tol=1e-10)
    assert_right(spectrum, matrix, 20, 4, 1e-9)
    gaps = np.diff([pair.value for pair in spectrum.smallest])
    np.testing.assert_allclose(gaps, 1e-4, rtol=1e-3)


def test_float32() -> None:
    matrix = with_spectrum(network(400))
    spectrum = extreme_eigenpairs(Dense(matrix, torch.float32), 20, 3, tol=1e-5)
    exact = np.linalg.eigvalsh(matrix)
    assert spectrum.converged
    assert spectrum.pairs[0].vector.dtype == np.float32
    np.testing.assert_allclose([p.value for p in spectrum.largest], exact[::-1][:20], atol=1e-4)
    np.testing.assert_allclose([p.value for p in spectrum.smallest], exact[:3], atol=1e-4)
    vectors = np.array([pair.vector for pair in spectrum.pairs], np.float64)
    assert np.abs(vectors @ vectors.T - np.eye(23)).max() < 1e-6
    for pair, vector in zip(spectrum.pairs, vectors, strict=True):
        assert np.linalg.norm(matrix @ vector - pair.value * vector) == pytest.approx(pair.residual, abs=1e-4)


def test_what_float32_cannot_give_is_flagged_and_ends() -> None:
    operator = Dense(with_spectrum(network(200)), torch.float32)
    spectrum = extreme_eigenpairs(operator, 5, 2, tol=1e-12)
    assert spectrum.products == operator.products < 700
    assert all(pair.residual < 1e-3 for pair in spectrum.pairs)


def test_fewer_products_than_two_calls_of_eigsh() -> None:
    values = network(2000)
    operator = LinearOperator(
        (2000, 2000), lambda x: values * x.ravel(), matmat=lambda x: values[:, None] * x
    )
    ours = extreme_eigenpairs(operator, 20, 3, tol=1e-4)
    theirs = extreme_eigenpairs(operator, 20, 3, tol=1e-4, solver=Eigsh())
    assert ours.converged
    assert theirs.converged
    assert ours.missed_check is not None
    # eigsh can hit a tolerance only from far below: it is allowed one ten times as loose.
    looser = extreme_eigenpairs(operator, 20, 3, tol=1e-3, solver=Eigsh())
    assert ours.products < 100
    assert ours.products - ours.missed_check.products < 0.65 * looser.products < 0.65 * theirs.products


def test_products_are_counted() -> None:
    operator = Dense(with_spectrum(network(300)))
    spectrum = extreme_eigenpairs(operator, 5, 2)
    assert spectrum.products == operator.products
    assert spectrum.missed_check is not None
    assert 0 < spectrum.missed_check.products < spectrum.products
    assert spectrum.seconds > 0
    assert spectrum.width == pytest.approx(101.85, rel=1e-3)


def test_agrees_with_eigsh() -> None:
    matrix = with_spectrum(network(300))
    ours = extreme_eigenpairs(matrix, 6, 3, tol=1e-9)
    theirs = extreme_eigenpairs(matrix, 6, 3, tol=1e-9, solver=Eigsh())
    assert_right(theirs, matrix, 6, 3, 1e-9)
    values = [[pair.value for pair in spectrum.pairs] for spectrum in (ours, theirs)]
    np.testing.assert_allclose(values[0], values[1], atol=1e-9)
    overlaps = [abs(a.vector @ b.vector) for a, b in zip(ours.pairs, theirs.pairs, strict=True)]
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)


def test_eigsh_knows_the_width_where_only_one_end_is_wanted() -> None:
    """To a hundredth, even if its basis is as small as can be."""
    spectrum = extreme_eigenpairs(np.diag(np.linspace(-1, 2, 100)), 1, 0, solver=Eigsh(max_basis=4))
    assert spectrum.width == pytest.approx(3, rel=0.01)
    larger = extreme_eigenpairs(np.diag(np.linspace(-1, 2, 100)), 1, 0, solver=Eigsh(max_basis=12))
    assert larger.products != spectrum.products  # `max_basis` is ARPACK's too


@pytest.mark.parametrize(
    ("size", "largest", "smallest"), [(1, 1, 0), (3, 1, 2), (9, 3, 0), (9, 0, 2), (9, 4, 4)]
)
def test_eigsh_on_small_matrices_and_single_ends(size: int, largest: int, smallest: int) -> None:
    matrix = with_spectrum(np.arange(1.0, size + 1))
    spectrum = extreme_eigenpairs(matrix, largest, smallest, tol=1e-8, solver=Eigsh())
    assert_right(spectrum, matrix, largest, smallest, 1e-8)


def test_the_check_finds_a_pair_hidden_from_the_first_run() -> None:
    values = np.array([10.0, 9.0, 8.0, 7.0] + [0.01 * i for i in range(50)] + [-3.0, -4.0])
    start = np.ones(len(values))
    start[[1, -1]] = 0  # orthogonal to the second and to the last eigenvector
    hidden = extreme_eigenpairs(np.diag(values), 3, 1, start=start, solver=Lanczos(check=False))
    assert [pair.value for pair in hidden.largest] == pytest.approx([10, 8, 7], abs=1e-3)
    assert hidden.smallest[0].value == pytest.approx(-3, abs=1e-3)
    assert hidden.converged
    assert hidden.missed_check is None
    for tol in (1e-3, 1e-9):
        found = extreme_eigenpairs(np.diag(values), 3, 1, start=start, tol=tol)
        assert_right(found, np.diag(values), 3, 1, tol)
        assert found.missed_check is not None
        assert found.missed_check.found == 2
        assert found.missed_check.largest <= 8 + tol * 14
        assert found.missed_check.smallest >= -4 - tol * 14


def test_the_bound_of_the_check() -> None:
    # 1.648 sqrt(n) exp(-sqrt(eps) (2m - 1)) = p at the share that is returned.
    share = undetected_share(10_000, 20, 0.005)
    assert 1.648 * 100 * math.exp(-math.sqrt(share) * 39) == pytest.approx(0.005)
    # An exhausted complement leaves nothing to doubt.
    check = extreme_eigenpairs(np.diag(np.arange(8.0)), 2, 2).missed_check
    assert check is not None
    assert (check.gap, check.found) == (0, 0)
    assert check.largest == pytest.approx(5)
    assert check.smallest == pytest.approx(2)
    # Nor is there any where all pairs are wanted.
    all_of_them = extreme_eigenpairs(np.diag(np.arange(4.0)), 2, 2).missed_check
    assert all_of_them == MissedCheck(0, 0, -math.inf, math.inf, 0.0)


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_a_warm_start_saves_products(tol: float) -> None:
    values = network(500)
    before = with_spectrum(values)
    noise = np.random.default_rng(5).normal(size=before.shape)
    after = before + 1e-3 * (noise + noise.T)  # of norm 0.06: small, but more than the bulk
    cold = extreme_eigenpairs(after, 10, 2, tol=tol)
    old = extreme_eigenpairs(before, 10, 2, tol=tol)
    rows = np.array([pair.vector for pair in old.pairs])
    for start in (old, old.pairs, rows, torch.as_tensor(rows), list(rows)):
        warm = extreme_eigenpairs(after, 10, 2, tol=tol, start=start)
        assert_right(warm, after, 10, 2, tol)
        assert warm.products <= cold.products - 5


def test_an_exact_start_is_no_trap() -> None:
    """The start spans an invariant subspace without the wanted pairs."""
    values = np.arange(100.0)
    start = np.eye(100)[[3, 50]]
    assert_right(extreme_eigenpairs(np.diag(values), 2, 1, start=start), np.diag(values), 2, 1, 1e-3)


def test_one_seed_one_result_and_no_other_stream_touched() -> None:
    matrix = with_spectrum(network(200))
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    runs = [extreme_eigenpairs(matrix, 4, 2, seed=seed) for seed in (0, 0, 1)]
    eig = [extreme_eigenpairs(matrix, 4, 2, seed=seed, solver=Eigsh()) for seed in (0, 0)]
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    for one, two in (runs[:2], eig):
        assert [pair.value for pair in one.pairs] == [pair.value for pair in two.pairs]
    assert runs[0].pairs[0].residual != runs[2].pairs[0].residual


def test_a_budget_returns_what_there_is() -> None:
    matrix = with_spectrum(network(400))
    operator = Dense(matrix)
    spectrum = extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(max_products=30))
    assert operator.products == spectrum.products == 30
    assert len(spectrum.pairs) == 13
    assert not spectrum.converged
    assert spectrum.largest[0].converged
    for pair in spectrum.pairs:
        true = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
        assert true == pytest.approx(pair.residual, rel=1e-3, abs=1e-11)
    assert len(extreme_eigenpairs(operator, 10, 3, solver=Lanczos(max_products=26)).pairs) == 13
    # Enough for the pairs, not for the check.
    whole = extreme_eigenpairs(operator, 10, 3, solver=Lanczos(check=False))
    for extra in range(4):
        part = extreme_eigenpairs(operator, 10, 3, solver=Lanczos(max_products=whole.products + extra))
        assert part.converged
        assert part.products <= whole.products + extra


@pytest.mark.parametrize("at", [2, 30, 45, 60, 70])
def test_an_interrupt_returns_the_pairs_so_far(at: int) -> None:
    matrix = with_spectrum(network(400))
    operator = Dense(matrix)
    operator.fail_at, operator.failure = at, KeyboardInterrupt
    spectrum = extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(max_basis=40))
    assert spectrum.interrupted
    assert len(spectrum.pairs) == min(13, at - 1)
    assert sum(pair.converged for pair in spectrum.pairs) >= 13 * (at > 65)
    for pair in spectrum.pairs:
        true = np.linalg.norm(matrix @ pair.vector - pair.value * pair.vector)
        assert true == pytest.approx(pair.residual, rel=1e-3, abs=1e-11)


def test_an_interrupt_before_anything_is_an_interrupt() -> None:
    operator = Dense(np.eye(5))
    operator.fail_at, operator.failure = 1, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        extreme_eigenpairs(operator)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_killed_anywhere_continues(tmp_path: Path, failure: type[BaseException]) -> None:
    matrix = with_spectrum(network(300))
    path = tmp_path / "new" / "state.npz"
    whole = Dense(matrix)
    expected = extreme_eigenpairs(whole, 10, 3, tol=1e-8, solver=Lanczos(max_basis=30, save_to=path))
    assert not path.exists()
    for at in range(5, expected.products, 9):
        operator = Dense(matrix)
        operator.fail_at, operator.failure = at, failure
        if failure is RuntimeError:
            with pytest.raises(RuntimeError):
                extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(max_basis=30, save_to=path))
        else:
            assert extreme_eigenpairs(
                operator, 10, 3, tol=1e-8, solver=Lanczos(max_basis=30, save_to=path)
            ).interrupted
        assert [file.name for file in path.parent.iterdir()] == ["state.npz"]
        operator.fail_at = None
        done = extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(max_basis=30, save_to=path))
        assert_right(done, matrix, 10, 3, 1e-8)
        # What is made again: at most the true residuals, the search, and a product that tests the file.
        assert operator.products <= expected.products + 14 + 40
        assert not path.exists()


def test_a_budget_can_be_extended(tmp_path: Path) -> None:
    matrix, path = with_spectrum(network(300)), tmp_path / "state.npz"
    operator = Dense(matrix)
    assert not extreme_eigenpairs(
        operator, 10, 3, tol=1e-8, solver=Lanczos(max_products=30, save_to=path)
    ).converged
    with pytest.raises(HessianError, match=r"state\.npz has already made 30 products; raise max_products"):
        extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(max_products=30, save_to=path))
    assert operator.products == 30
    assert_right(
        extreme_eigenpairs(operator, 10, 3, tol=1e-8, solver=Lanczos(save_to=path)), matrix, 10, 3, 1e-8
    )
    assert not path.exists()


def _unfinished(path: Path) -> Dense:
    operator = Dense(with_spectrum(network(100)))
    operator.fail_at = 15
    with pytest.raises(RuntimeError):
        extreme_eigenpairs(operator, 3, 1, solver=Lanczos(save_to=path))
    operator.fail_at = None
    return operator


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    operator = _unfinished(path)
    content = path.read_bytes()
    poisoned = dict(np.load(path))
    for size in (0, 10, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:size])
        with pytest.raises(HessianError, match=r"state\.npz is damaged.*delete it"):
            extreme_eigenpairs(operator, 3, 1, solver=Lanczos(save_to=path))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    path.write_bytes(flipped)
    with pytest.raises(HessianError, match=r"state\.npz is damaged"):
        extreme_eigenpairs(operator, 3, 1, solver=Lanczos(save_to=path))
    for name, value in {
        "basis": np.zeros((3, 5)),
        "projected": np.array([object()]),
        "coupling": np.zeros(10_000),
        "generator": np.zeros(3, np.uint8),
    }.items():
        np.savez(path, **{**poisoned, name: value})
        with pytest.raises(HessianError, match=r"state\.npz is damaged"):
            extreme_eigenpairs(operator, 3, 1, solver=Lanczos(save_to=path))
    assert path.exists()


def test_files_of_other_computations_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    operator = _unfinished(path)
    content = path.read_bytes()
    for matrix, largest in ((np.eye(7), 3), (operator.matrix.numpy(), 4)):
        with pytest.raises(HessianError, match=r"state\.npz belongs to another computation.*delete it"):
            extreme_eigenpairs(matrix, largest, 1, solver=Lanczos(save_to=path))
    with pytest.raises(HessianError, match=r"state\.npz was made with another operator.*delete it"):
        extreme_eigenpairs(Dense(with_spectrum(network(100), seed=9)), 3, 1, solver=Lanczos(save_to=path))
    assert path.read_bytes() == content


def test_products_that_are_not_finite_are_refused() -> None:
    for bad in (np.nan, np.inf):
        for solver in (Lanczos(), Eigsh()):
            matrix = np.eye(9)
            matrix[4, 4] = bad
            with pytest.raises(HessianError, match="not finite"):
                extreme_eigenpairs(Dense(matrix), solver=solver)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"largest": 15, "smallest": 15},
            "asked for 30 eigenpairs of an operator of size 20; ask for at most 20",
        ),
        ({"largest": 0, "smallest": 0}, "asks for no eigenpair"),
        ({"largest": -1}, "asks for no eigenpair"),
        ({"tol": 0}, "between 0 and 1"),
        ({"tol": float("nan")}, "between 0 and 1"),
        ({"solver": Lanczos(max_products=3)}, "allow at least 4"),
        ({"solver": Lanczos(max_basis=3)}, "allow at least 5"),
        ({"solver": Eigsh(max_basis=3)}, "allow at least 5"),
        ({"solver": "power"}, r"solver='power' is not a solver; give Lanczos\(\), Eigsh\(\)"),
        ({"solver": Lanczos}, "is not a solver"),
        ({"start": np.zeros(20)}, "zero or not finite"),
        ({"start": np.ones(19)}, "shape"),
        ({"start": np.stack([np.ones(20), -np.ones(20)])}, "cancel"),
        ({"start": []}, "leave `start` out"),
    ],
)
def test_impossible_requests_are_explained(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(HessianError, match=sentence):
        extreme_eigenpairs(np.eye(20), **options)  # type: ignore[arg-type]


def test_a_matrix_that_is_not_square_is_refused() -> None:
    with pytest.raises(HessianError, match="square"):
        extreme_eigenpairs(np.zeros((2, 3)))


def test_it_takes_what_scipy_takes(capsys: pytest.CaptureFixture[str]) -> None:
    matrix = with_spectrum(network(80))
    for operator in (matrix, torch.as_tensor(matrix), aslinearoperator(matrix), Dense(matrix)):
        assert_right(extreme_eigenpairs(operator, 2, 1), matrix, 2, 1, 1e-3)
    assert capsys.readouterr() == ("", "")
    extreme_eigenpairs(matrix, 2, 1, progress=True)
    assert capsys.readouterr().out == ""
    value = eigsh(Dense(matrix), 1, which="LA", return_eigenvectors=False)
    assert value == pytest.approx(extreme_eigenpairs(matrix, 1, 0, tol=1e-8).largest[0].value)


def test_a_state_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HessianError, match=r"cannot write .*: File exists; choose another folder"):
        SavedRun(tmp_path / "file" / "state.npz", {}).save({})
