"""What a result says of its own accuracy: residuals, angles, thresholds; known answers."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hessian.products.symmetric import as_operator
from hessian.spectrum.angles import angles
from hessian.spectrum.arguments import basis_capacity, checked_goal, product_limit
from hessian.spectrum.completeness import MissedSearch, undetected_share
from hessian.spectrum.counted import Products
from hessian.spectrum.eigenpairs import extreme_eigenpairs
from hessian.spectrum.eigsh import Eigsh
from hessian.spectrum.first_run import _kept, _still, wanted_pairs
from hessian.spectrum.goal import Goal, Span
from hessian.spectrum.krylov_basis import KrylovBasis, Ritz, check_symmetry, ends
from hessian.spectrum.lanczos import Lanczos, _Run
from hessian.spectrum.rayleigh_ritz import Block, certified, polished, rayleigh_ritz
from hessian.spectrum.results import Eigenpair, Spectrum
from hessian.spectrum.solver import EigenProblem
from thermoscope.errors import HessianError

from .test_eigenpairs import Dense, network, with_spectrum


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- angles ---------------------------------------------------------------------------------------------


def test_an_angle_is_the_residual_over_the_gap() -> None:
    values, residuals = np.array([0.0, 1.0]), np.array([0.1, 0.02])
    first, second = angles(values, residuals, np.zeros((0, 2)))
    assert first == pytest.approx(math.asin(0.1 / (1 - 4 * 0.02)))
    assert second == pytest.approx(math.asin(0.02 / (1 - 4 * 0.1)))
    first, second = angles(values, residuals, np.array([[1.5, 0.05], [-9.0, 0.0]]))
    assert first == pytest.approx(math.asin(0.1 / (1 - 4 * 0.02)))
    assert second == pytest.approx(math.asin(0.02 / (0.5 - 4 * 0.05)))


def test_where_the_gap_says_nothing_neither_does_the_angle() -> None:
    one = np.ones(1)
    assert angles(one, one, None) == [None]
    assert angles(one, 0.1 * one, np.zeros((0, 2))) == [0.0]  # there are no others
    assert angles(one, 0.1 * one, np.array([[1.05, 0.0]])) == [math.pi / 2]  # closer than the residual
    assert angles(np.ones(2), np.zeros(2), np.zeros((0, 2))) == [math.pi / 2] * 2  # a double eigenvalue
    assert angles(one, 0.1 * one, np.array([[2.0, 0.5]])) == [math.pi / 2]  # a neighbour that is anywhere


def test_no_vector_is_farther_from_an_eigenvector_than_its_angle() -> None:
    rng = np.random.default_rng(0)
    for size in range(2, 40):
        matrix = with_spectrum(rng.normal(size=size), size)
        exact, vectors = np.linalg.eigh(matrix)
        v = vectors[:, 0] + rng.uniform(0, 0.5) * rng.normal(size=size) / math.sqrt(size)
        v /= np.linalg.norm(v)
        value = v @ matrix @ v
        others = np.stack([exact[1:], np.zeros(size - 1)], 1)
        (angle,) = angles(np.array([value]), np.array([np.linalg.norm(matrix @ v - value * v)]), others)
        assert angle is not None
        assert math.acos(min(1.0, abs(v @ vectors[:, 0]))) <= angle + 1e-12 or angle == math.pi / 2


def test_pairs_carry_angles_that_hold() -> None:
    values = network(200)
    matrix = with_spectrum(values)
    vectors = np.linalg.eigh(matrix)[1]
    spectrum = extreme_eigenpairs(matrix, 4, 3)
    for pair, i in zip((*spectrum.largest, *spectrum.smallest), (-1, -2, -3, -4, 0, 1, 2), strict=True):
        assert pair.angle is not None
        assert math.acos(min(1.0, abs(pair.vector @ vectors[:, i]))) <= pair.angle + 1e-7
        assert pair.doubt == pytest.approx(math.sin(pair.angle))
    assert spectrum.largest[0].angle < 1e-3
    assert Eigenpair(1.0, np.ones(1), 0.1, True).doubt == 1
    assert extreme_eigenpairs(matrix, 2, 1, solver=Eigsh()).largest[0].angle is None


def test_a_double_eigenvalue_has_no_vector_of_its_own() -> None:
    matrix = with_spectrum(np.r_[5.0, 5.0, 3.0, np.linspace(-1, 1, 60)])
    pairs = extreme_eigenpairs(matrix, 3, 0).largest
    assert [pair.value for pair in pairs] == pytest.approx([5, 5, 3], abs=1e-3)
    assert [pair.doubt == 1 for pair in pairs] == [True, True, False]


# -- residuals ------------------------------------------------------------------------------------------


def block(errors: torch.Tensor) -> tuple[Block, torch.Tensor]:
    """Exact eigenvectors whose products are off by the rows of `errors`; the matrix."""
    count, size = errors.shape
    matrix = torch.as_tensor(with_spectrum(np.arange(size, dtype=np.float64)))
    vectors = torch.linalg.eigh(matrix)[1].T[-count:].contiguous()
    products = vectors @ matrix + errors
    return Block(vectors, products, np.arange(size - count, size, dtype=np.float64), np.zeros(count)), matrix


def test_two_random_products_bound_the_error_of_all() -> None:
    errors = 1e-3 * torch.randn(5, 30, generator=generator(), dtype=torch.float64)
    given, matrix = block(errors)
    made = certified(given, lambda rows: rows @ matrix, generator(7))
    weights = torch.randn(2, 5, generator=generator(7), dtype=torch.float64)
    seen = float((weights @ errors).square().sum())
    assert made.doubt == pytest.approx(math.sqrt(seen / 0.02), rel=1e-9)
    np.testing.assert_allclose(made.residuals, made.doubt)
    assert certified(made, lambda rows: rows @ matrix, generator(7)).residuals == pytest.approx(
        made.residuals
    )


def test_the_bound_fails_as_rarely_as_it_says() -> None:
    """For an error in one direction, the worst case: once in a hundred."""
    errors = torch.zeros(6, 30, dtype=torch.float64)
    errors[:, 0] = torch.randn(6, generator=generator(), dtype=torch.float64)
    given, matrix = block(errors)
    norm = float(torch.linalg.matrix_norm(errors, 2))
    doubts = [certified(given, lambda rows: rows @ matrix, generator(s)).doubt for s in range(2000)]
    assert 0.004 <= np.mean(np.array(doubts) < norm) <= 0.017  # 1% in expectation, 0.2% is its deviation
    tenths = [certified(given, lambda rows: rows @ matrix, generator(s), 0.1).doubt for s in range(500)]
    assert 0.06 <= np.mean(np.array(tenths) < norm) <= 0.14


def test_true_products_leave_no_doubt() -> None:
    given, matrix = block(torch.zeros(4, 25, dtype=torch.float64))
    assert certified(given, lambda rows: rows @ matrix, generator()).doubt < 1e-12


def test_residuals_are_certified_or_measured() -> None:
    matrix = with_spectrum(network(500))
    operator = Dense(matrix)
    spectrum = extreme_eigenpairs(operator, 10, 3, tol=1e-4, solver=Lanczos(check=False))
    assert spectrum.residuals == "certified"
    tight = extreme_eigenpairs(Dense(matrix, torch.float32), 10, 3, tol=1e-6, solver=Lanczos(check=False))
    assert tight.residuals == "measured"  # the certificate of float32 products is coarser than that
    for found in (spectrum, tight):
        for pair in found.pairs:
            v = pair.vector.astype(np.float64)
            assert np.linalg.norm(matrix @ v - pair.value * v) <= pair.residual + 3e-5

    class Noisy(Dense):
        """Its products are off by 2e-5 of the norm: fewer than half of float32's digits."""

        noise = generator()

        def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
            return super()._multiply(vectors) + 1e-4 * torch.randn(vectors.shape, generator=self.noise)

    noisy = extreme_eigenpairs(Noisy(matrix, torch.float32), 10, 3, tol=1e-5)
    assert noisy.residuals == "measured"


def test_polishing_brings_each_residual_below_its_own_threshold() -> None:
    matrix = torch.as_tensor(with_spectrum(np.r_[np.linspace(0, 1, 26), 26.0, 27.0, 28.0, 29.0]))
    exact = torch.linalg.eigh(matrix)[1].T[-4:]
    rough = torch.linalg.qr((exact + 1e-4 * torch.randn(4, 30, generator=generator(), dtype=torch.float64)).T)
    rows = rough[0].T.contiguous()
    given = rayleigh_ritz(rows, rows @ matrix)
    asked = np.array([1e-1, 2e-4, 1e-1, 2e-4])

    def thresholds(values: np.ndarray) -> np.ndarray:
        return asked[np.abs(values[:, None] - np.arange(26.0, 30.0)).argmin(1)]

    def wanted(size: int) -> np.ndarray:
        return np.arange(size - 4, size)

    done = polished(given, wanted, thresholds, lambda rows: rows @ matrix, lambda: math.inf)
    assert (done.residuals[-4:] <= asked).all()
    np.testing.assert_allclose(done.values[-4:], [26, 27, 28, 29], atol=1e-3)
    left = polished(given, wanted, thresholds, lambda rows: rows @ matrix, lambda: 0)
    np.testing.assert_array_equal(left.values, given.values)


def test_polishing_goes_on_as_long_as_it_helps_and_no_longer() -> None:
    matrix = torch.as_tensor(with_spectrum(np.r_[np.linspace(0, 1, 26), 26.0, 27.0, 28.0, 29.0]))
    rows = torch.linalg.eigh(matrix)[1].T[-4:].clone()
    rows[:2] += 1e-3 * torch.randn(2, 30, generator=generator(), dtype=torch.float64)  # the others are exact
    rows = torch.linalg.qr(rows.flip(0).T)[0].T.contiguous()
    given = rayleigh_ritz(rows, rows @ matrix)
    assert given.residuals.min() < 1e-12
    spent = 0

    def multiply(vectors: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        nonlocal spent
        spent += len(vectors)
        return vectors @ matrix + noise * torch.randn(vectors.shape, generator=generator(spent)).double()

    def wanted(size: int) -> np.ndarray:
        return np.arange(size - 4, size)

    def asked(values: np.ndarray) -> np.ndarray:
        return np.full(len(values), 1e-9)

    done = polished(given, wanted, asked, multiply, lambda: math.inf)
    assert done.residuals[-4:].max() <= 1e-9
    assert 4 < spent < 20
    spent = 0
    noisy = polished(given, wanted, asked, lambda rows: multiply(rows, 1e-4), lambda: math.inf)
    assert 0 < spent < 20
    assert noisy.residuals[-4:].max() > 1e-9


def test_lanczos_knows_its_products() -> None:
    matrix = torch.as_tensor(with_spectrum(network(80)))
    lanczos = KrylovBasis(
        lambda rows: rows @ matrix, 80, 20, generator=generator(), dtype=torch.float64, device=matrix.device
    )
    lanczos.begin()
    for _ in range(45):
        if lanczos.full:
            lanczos.restart(lanczos.ritz(), ends(20, 5, 4))
        lanczos.step()
        ritz, which = lanczos.ritz(), ends(lanczos.size, 2, 1)
        vectors = lanczos.vectors(ritz.coefficients[:, which])
        np.testing.assert_allclose(lanczos.products(ritz, vectors, which), vectors @ matrix, atol=1e-11)


# -- what is known beside the pairs ---------------------------------------------------------------------


def exhausted(values: np.ndarray, steps: int | None = None) -> KrylovBasis:
    """A Lanczos process on a diagonal matrix, to its end or for some steps."""
    matrix = torch.diag(torch.as_tensor(values))
    lanczos = KrylovBasis(
        lambda rows: rows @ matrix,
        len(values),
        len(values),
        generator=generator(),
        dtype=torch.float64,
        device=matrix.device,
    )
    lanczos.begin()
    for _ in range(len(values) if steps is None else steps):
        lanczos.step()
    return lanczos


@pytest.mark.parametrize(
    ("largest", "smallest", "next_ones"),
    [(2, 1, [1, 7]), (3, 0, [6]), (0, 2, [2]), (5, 4, [4]), (6, 4, []), (10, 0, []), (0, 9, [9])],
)
def test_the_neighbours_of_the_wanted_pairs(largest: int, smallest: int, next_ones: list[int]) -> None:
    lanczos, goal = exhausted(np.arange(10.0)), Goal(largest, smallest, 1e-3, 0.1, 1e-15)
    block, beyond = wanted_pairs(lanczos, lanczos.ritz(), goal)
    np.testing.assert_allclose(block.values, [*range(smallest), *range(10 - largest, 10)], atol=1e-12)
    assert beyond is not None
    assert beyond.shape == (len(next_ones), 2)
    np.testing.assert_allclose(beyond[:, 0], next_ones, atol=1e-12)
    np.testing.assert_allclose(beyond[:, 1], 0, atol=1e-12)


def test_neighbours_are_not_known_where_the_basis_holds_the_wanted_pairs_only() -> None:
    lanczos = exhausted(np.arange(10.0), 3)
    assert wanted_pairs(lanczos, lanczos.ritz(), Goal(2, 1, 1e-3, 0.1, 1e-15))[1] is None
    ritz = lanczos.ritz()
    beyond = wanted_pairs(lanczos, ritz, Goal(1, 1, 1e-3, 0.1, 1e-15))[1]
    assert beyond is not None
    np.testing.assert_allclose(beyond, [[ritz.values[1], ritz.residuals[1]]])


def test_what_the_search_knows_farther_out_counts_too() -> None:
    first, search = (
        np.array([[1.0, 0.1], [7.0, 0.2]]),
        np.array([[0.5, 0.01], [1.05, 0.02], [7.1, 0.03], [7.5, 0]]),
    )

    def known(largest: int, smallest: int, found: int, beyond: np.ndarray | None = search) -> np.ndarray:
        operator, goal = as_operator(np.eye(9)), Goal(largest, smallest, 1e-3, 0.1, 1e-15)
        with Products(operator, None, False) as products:
            run = _Run(EigenProblem(operator, products, goal, None, 0), 9, None)
        run._beyond = first
        result = run._known_beyond(SimpleNamespace(found=found, beyond=beyond))  # type: ignore[arg-type]
        assert result is not None
        return result

    np.testing.assert_array_equal(known(2, 1, 0), [*first, search[0], search[3]])  # beyond 7.2 and below 0.9
    np.testing.assert_array_equal(known(2, 0, 0), [*first, search[3]])
    np.testing.assert_array_equal(known(0, 1, 0), [*first, search[0]])
    np.testing.assert_array_equal(known(2, 1, 1), search[[0, 3]])  # the first run has missed something
    np.testing.assert_array_equal(known(2, 1, 1, np.zeros((0, 2))), first)


def test_values_stand_still_for_sixteen_products() -> None:
    def history(*moves: float) -> list[tuple[int, np.ndarray]]:
        return [(i, np.array([1.0, 2.0 + move])) for i, move in enumerate(moves)]

    assert _still(history(*[0.0] * 17), 0.0)
    assert not _still(history(*[0.0] * 16), 1.0)  # there was nothing to compare with so long ago
    assert _still(history(9, 0.5, *[0.0] * 15, 0.0), 0.5)  # to the newest of those that are old enough
    assert not _still(history(9, 0.5, *[0.0] * 15, 0.0), 0.4)
    assert not _still(history(0.5, *[9.0] * 15, 0.0), 0.4)


def test_a_restart_keeps_both_ends_in_proportion() -> None:
    lanczos = exhausted(np.arange(40.0), 40)
    for largest, smallest, kept in ((6, 2, (15, 5)), (0, 8, (0, 20)), (8, 0, (20, 0)), (20, 16, (21, 16))):
        which = _kept(lanczos, Goal(largest, smallest, 1e-3, 0.1, 1e-15))
        np.testing.assert_array_equal(which, ends(40, *kept))


@pytest.mark.parametrize(
    ("tol", "max_basis", "size"), [(1e-3, None, 600), (1e-8, 40, 300), (1e-3, None, 1200)]
)
def test_the_gap_of_the_search_is_that_of_the_theorem(tol: float, max_basis: int | None, size: int) -> None:
    bulk = np.linspace(-1, 1, size - 8)
    values = np.r_[-1.2, -1.1, -1.01, bulk, 1.01, 1.1, 1.2, 1.3, 1.4]
    check = extreme_eigenpairs(
        np.diag(values), 5, 3, tol=tol, solver=Lanczos(max_basis=max_basis)
    ).missed_check
    assert check is not None
    assert check.found == 0
    assert (check.products > 20) == (tol < 1e-6)  # the search went on over restarts
    share = undetected_share(size - 8, max_basis or 20, 0.005)
    expected = (check.largest - check.smallest) * share / (1 - 2 * share) / 2.6
    assert check.gap == pytest.approx(expected, rel=1e-6)
    assert check.smallest == pytest.approx(-1, abs=0.1)
    assert check.largest == pytest.approx(1, abs=0.1)


# -- symmetry -------------------------------------------------------------------------------------------


def test_half_of_the_digits_may_differ() -> None:
    check_symmetry(0.99e-8, 1.0, 1e-16)
    check_symmetry(2.9e-8, 3.0, 1e-16)
    check_symmetry(0.0, 0.0, 1e-16)
    with pytest.raises(HessianError, match=r"not symmetric: .* differ by 1\.1e-08 of its norm"):
        check_symmetry(3.3e-8, 3.0, 1e-16)


@pytest.mark.parametrize("size", [2, 3, 10, 300])
def test_asymmetry_shows_at_the_second_product(size: int) -> None:
    skew = np.random.default_rng(0).normal(size=(size, size))
    operator = Dense(skew - skew.T)
    with pytest.raises(HessianError, match="not symmetric"):
        extreme_eigenpairs(operator, 1, 1)
    assert operator.products == 4  # and two tell that it is the same one each time


def test_an_operator_that_says_float32_is_judged_by_it() -> None:
    assert as_operator(np.eye(3, dtype=np.float32)).eps == np.finfo(np.float64).eps
    from scipy.sparse.linalg import aslinearoperator

    rough = as_operator(aslinearoperator(np.eye(3, dtype=np.float32)))
    assert rough.eps == np.finfo(np.float32).eps
    assert checked_goal(rough, 1, 1, 1e-3, 0.1).rounding == pytest.approx(10 * rough.eps)


# -- what is asked --------------------------------------------------------------------------------------


def test_a_residual_is_small_beside_the_width_and_beside_its_own_value() -> None:
    goal, span = Goal(1, 1, 0.01, 0.1, 1e-6), Span(-2.0, 8.0)
    values = np.array([8.0, 1.0, 0.5, 0.1, 0.095, 0.05, 0.0, -0.05, -0.5, -2.0])
    expected = [0.1, 0.1, 0.05, 0.01, 0.0095, 0.05, 0.1, 0.05, 0.05, 0.1]
    np.testing.assert_allclose(goal.thresholds(values, span), expected)
    assert goal.threshold(span) == pytest.approx(0.1)
    rounding = Goal(1, 1, 1e-9, 0.1, 1e-6)
    np.testing.assert_allclose(rounding.thresholds(values, span), 8e-6)
    assert rounding.threshold(span) == pytest.approx(8e-6)
    assert (span.width, span.scale, Span(-3.0, 2.0).scale) == (10, 8, 3)


def test_a_span_covers_what_it_has_seen() -> None:
    span = Span()
    span.cover(np.array([1.0, -2.0]))
    span.cover(np.array([0.5]))
    assert (span.low, span.high, span.width) == (-2, 1, 3)
    span.cover(np.array([4.0, -3.0]))
    assert (span.low, span.high) == (-3, 4)


def test_a_small_end_is_known_by_its_own_measure() -> None:
    """-0.118 with neighbours 0.002 away, below a spectrum 20 wide: tol alone is 17% of it."""
    bulk = np.random.default_rng(0).uniform(-0.115, 4, 1500)
    matrix = np.diag(np.r_[20 * np.arange(1, 21) ** -1.0, -0.118, -0.116, bulk])
    by_width = extreme_eigenpairs(matrix, 3, 1, rtol=math.inf, solver=Lanczos(check=False))
    by_both = extreme_eigenpairs(matrix, 3, 1, solver=Lanczos(check=False))
    assert by_width.smallest[0].residual > 0.1 * 0.118
    assert by_width.converged
    assert by_both.smallest[0].residual <= 0.1 * 0.118
    assert by_both.smallest[0].value == pytest.approx(-0.118, abs=0.1 * 0.118)
    assert by_both.converged
    assert by_both.products > by_width.products
    budget = extreme_eigenpairs(matrix, 3, 1, solver=Lanczos(max_products=by_width.products, check=False))
    assert not budget.smallest[0].converged
    assert budget.largest[0].converged


def test_an_end_at_zero_is_zero_as_far_as_tol_says() -> None:
    rank = 30
    matrix = with_spectrum(np.r_[np.zeros(270), np.geomspace(1e-3, 10, rank)])
    spectrum = extreme_eigenpairs(matrix, 3, 1)
    assert spectrum.converged
    assert abs(spectrum.smallest[0].value) + spectrum.smallest[0].residual <= 1e-3 * spectrum.width * 1.001


def test_the_margin_of_the_search_is_half_of_tol_of_the_width() -> None:
    """Width 14, norm 10: an eigenvalue that the first run cannot see lies 0.06 beyond the wanted one."""
    values = np.r_[10.06, 10.0, np.linspace(-1, 1, 400), -4.0]
    start = np.ones(len(values))
    start[0] = 0
    for tol, found in ((1e-2, 0), (8e-3, 1), (1e-3, 1)):  # margins 0.07, 0.056, 0.007
        check = extreme_eigenpairs(np.diag(values), 1, 1, start=start, tol=tol).missed_check
        assert check is not None
        assert check.found == found
    with_half_of_it = np.diag(np.r_[10.04, values[1:]])
    for tol, found in ((1e-2, 0), (5e-3, 1)):
        check = extreme_eigenpairs(with_half_of_it, 1, 0, start=start, tol=tol).missed_check
        assert check is not None
        assert check.found == found


@pytest.mark.parametrize(
    ("lower", "upper", "clear"), [(-0.2, 1.2, True), (-0.05, 1.2, False), (-0.2, 1.05, False)]
)
def test_a_search_ends_early_only_where_both_ends_are_clear(
    lower: float, upper: float, clear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Ritz values lie in 0 ... 1, and no eigenvalue more than 0.1 outside."""
    operator = as_operator(np.eye(9))
    vectors = torch.eye(9, dtype=torch.float64)[:2]
    pairs = Block(vectors, vectors, np.ones(2), np.zeros(2))
    with Products(operator, None, progress=False) as products:
        search = MissedSearch(
            pairs, Goal(1, 1, 1e-3, 0.1, 1e-15), Span(0.0, 1.0), products, generator(), 5, 1e-16
        )
        monkeypatch.setattr(search, "_doubt", lambda lanczos, ritz: 0.1)
        ritz = Ritz(np.array([0.0, 1.0]), np.eye(2), np.zeros(2), 1.0)
        basis = exhausted(np.arange(4.0), steps=2)
        assert search._clear(basis, ritz, lower, upper, margin=0.0, spent=0) is clear


def test_the_search_is_as_short_as_it_is_said_to_be() -> None:
    for seed in range(3):
        check = extreme_eigenpairs(with_spectrum(network(600, seed)), 20, 3, seed=seed).missed_check
        assert check is not None
        assert check.found == 0
        assert check.products == 20


def test_values_that_stand_still_are_all_there() -> None:
    """Without the search: at the first residuals below tol, 17 of these 40 runs missed pairs."""
    for seed in range(20):
        values = network(500, seed)
        for tol in (1e-2, 1e-3):
            spectrum = extreme_eigenpairs(
                np.diag(values), 20, 3, tol=tol, seed=seed, solver=Lanczos(check=False)
            )
            found = np.array([pair.value for pair in spectrum.pairs])
            expected = np.r_[values[::-1][:20], values[:3][::-1]]
            assert np.abs(found - expected).max() <= tol * spectrum.width


def test_a_hopeless_search_ends() -> None:
    goal = checked_goal(as_operator(np.eye(30)), 3, 2, 1e-3, 0.1)
    assert product_limit(goal, None) == 1500
    assert product_limit(goal, 77) == 77

    class Endless(Dense):
        """Every product comes with other noise, so little that it may be rounding."""

        noise = generator()

        def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
            return super()._multiply(vectors) + 1e-5 * torch.randn(vectors.shape, generator=self.noise)

    operator = Endless(with_spectrum(np.linspace(-1, 1, 450)), torch.float32)
    spectrum = extreme_eigenpairs(operator, 1, 1, tol=1e-7, solver=Lanczos(max_basis=12))
    assert spectrum.products == operator.products <= 1200
    assert not spectrum.converged


def test_the_basis_is_as_large_as_helps() -> None:
    def capacity(size: int, wanted: int, max_basis: int | None = None) -> int:
        return basis_capacity(Dense(np.zeros((1, 1))).__class__(np.zeros((size, size))), wanted, max_basis)

    assert capacity(300, 3) == 300
    assert capacity(401, 3) == 160
    assert capacity(600, 100) == 340
    assert capacity(600, 3, 50) == 50
    assert capacity(30, 3, 50) == 30


def test_all_of_a_small_space_is_taken_if_the_products_suffice() -> None:
    """From half of it on; that is 60 products and two that certify."""
    matrix = np.diag(np.linspace(-1, 1, 60))
    for limit in (60, 61, 62, None):
        spectrum = extreme_eigenpairs(matrix, 2, 0, solver=Lanczos(max_products=limit, check=False))
        assert spectrum.converged
        whole = limit in (62, None)
        assert spectrum.products == 62 if whole else 30 < spectrum.products < 58
        assert (max(pair.residual for pair in spectrum.pairs) < 1e-12) == whole


def test_the_seconds_of_all_products_add_up() -> None:
    class Slow(Dense):
        def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return super()._multiply(vectors)

    with Products(Slow(np.eye(3)), None, progress=False) as products:
        for _ in range(3):
            products(torch.ones(1, 3, dtype=torch.float64))
        assert products.seconds >= 0.06


# -- products -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 7e20])
def test_products_are_divided_by_a_power_of_two(scale: float) -> None:
    matrix = scale * with_spectrum(np.arange(1.0, 9.0))
    operator = Dense(matrix, torch.float32)
    with Products(operator, 11, progress=False) as products:
        rows = torch.randn(11, 8, generator=generator())
        assert products.unit == 0
        assert not products(torch.zeros(1, 8)).any()
        made = products(rows[:10])
        assert math.frexp(products.unit)[0] == 0.5
        largest = float((rows[:8] @ operator.matrix).abs().max())
        assert products.unit <= largest < 2 * products.unit
        torch.testing.assert_close(made * products.unit, rows[:10] @ operator.matrix)
        assert (products.count, products.left) == (11, 0)
        assert products.seconds > 0


def test_values_scale_with_the_operator_to_the_last_digit() -> None:
    matrix = with_spectrum(network(150)).astype(np.float32)
    one = extreme_eigenpairs(Dense(matrix, torch.float32), 5, 2)
    for scale in (2.0**70, 2.0**-80):
        other = extreme_eigenpairs(Dense(matrix * np.float32(scale), torch.float32), 5, 2)
        assert [pair.value * scale for pair in one.pairs] == [pair.value for pair in other.pairs]
        assert [pair.residual * scale for pair in one.pairs] == [pair.residual for pair in other.pairs]
        assert other.width == one.width * scale
        assert one.missed_check is not None
        assert other.missed_check is not None
        assert other.missed_check.largest == one.missed_check.largest * scale
        assert other.missed_check.smallest == one.missed_check.smallest * scale


def test_products_are_refused_only_below_the_smallest_normal_number() -> None:
    tiny = float(np.finfo(np.float64).tiny)
    assert extreme_eigenpairs(np.diag([tiny]), 1, 0).largest[0].value == tiny
    with pytest.raises(HessianError, match=r"as small as 1\.1e-308, which float64 cannot resolve"):
        extreme_eigenpairs(np.diag([tiny / 2]), 1, 0)


# -- results --------------------------------------------------------------------------------------------


def test_vectors_have_a_sign_of_their_own_and_turn_downhill() -> None:
    matrix = with_spectrum(network(100))
    spectrum = extreme_eigenpairs(matrix, 3, 2)
    for pair in spectrum.pairs:
        assert pair.vector[np.abs(pair.vector).argmax()] > 0
    gradient = np.random.default_rng(0).normal(size=100)
    for given in (gradient, torch.as_tensor(gradient)):
        turned = spectrum.downhill(given)
        assert all(gradient @ pair.vector < 0 for pair in turned.pairs)
        for one, other in zip(spectrum.pairs, turned.pairs, strict=True):
            assert (one.value, one.angle) == (other.value, other.angle)
            np.testing.assert_array_equal(np.abs(one.vector), np.abs(other.vector))
    flat = Spectrum((Eigenpair(1.0, np.array([1.0, 0.0]), 0.0, True),), (), 1.0, 1e-3, 0, 0.0, "dense")
    np.testing.assert_array_equal(flat.downhill(np.array([0.0, 1.0])).largest[0].vector, [1, 0])


def test_seconds_are_accounted_for() -> None:
    spectrum = extreme_eigenpairs(with_spectrum(network(300)), 5, 2)
    assert set(spectrum.breakdown) == {"products", "orthogonalisation", "residuals", "search"}
    assert min(spectrum.breakdown.values()) > 0
    assert 0.8 * spectrum.seconds < sum(spectrum.breakdown.values()) <= spectrum.seconds


def test_shares_of_three_parameters() -> None:
    layout = {"a": (2, 2), "b": (), "c": (3,)}
    vector = np.array([0.5, 0.1, 0.1, 0.5, 0.3, 0.2, 0.4, 0.3], np.float32)
    pair = Eigenpair(1.0, vector, 0.0, True)
    spectrum = Spectrum((pair,), (), 1.0, 1e-3, 0, 0.0, "dense", layout=layout)
    assert spectrum.shares(pair) == pytest.approx({"a": 0.52, "b": 0.09, "c": 0.29})
    assert not spectrum.interrupted
    assert spectrum.converged
    assert (spectrum.residuals, spectrum.mode, spectrum.missed_check) == ("measured", "", None)
