"""Stochastic Lanczos quadrature, against spectra that are known."""

from __future__ import annotations

import random
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import norm, sem

from hessian.products.symmetric import SymmetricOperator
from hessian.spectrum.density import Density, spectral_density
from hessian.spectrum.trace import Estimate
from thermoscope.errors import HessianError


class Recorded(SymmetricOperator):
    """A matrix that remembers the vectors it was multiplied with."""

    def __init__(self, matrix: np.ndarray, dtype: torch.dtype = torch.float64):
        super().__init__(len(matrix), torch.device("cpu"), dtype)
        self._matrix = torch.as_tensor(matrix, dtype=dtype)
        self.seen: list[torch.Tensor] = []

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        self.seen += [row.clone() for row in vectors]
        return vectors @ self._matrix


def _conjugate(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with these eigenvalues, and its eigenvectors as columns, random."""
    noise = np.random.default_rng(seed).standard_normal((len(values), len(values)))
    q = np.linalg.qr(noise)[0]
    return (q * values) @ q.T, q


def _many(matrix: np.ndarray, seeds: int, **options: int) -> list[Density]:
    return [spectral_density(matrix, seed=seed, **options) for seed in range(seeds)]


def _assert_honest(values: np.ndarray, errors: np.ndarray, truth: float) -> None:
    """No bias to four standard errors, and the reported standard error is the scatter over seeds."""
    scatter = values.std(ddof=1)
    assert abs(values.mean() - truth) < 4 * scatter / np.sqrt(len(values))
    assert 0.8 < np.sqrt((errors**2).mean()) / scatter < 1.25


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_the_quadrature_is_exact_up_to_degree_2m_minus_1_and_no_further(steps: int) -> None:
    matrix, q = _conjugate(np.linspace(-1, 0.9, 30))
    operator = Recorded(matrix)
    (rule,) = spectral_density(operator, vectors=1, steps=steps).quadratures
    weights = (operator.seen[0].numpy() @ q) ** 2

    def error(power: int) -> float:
        return float(abs(rule.weights @ rule.nodes**power - weights @ np.linspace(-1, 0.9, 30) ** power))

    assert len(rule.nodes) == steps == operator.products
    assert max(error(power) for power in range(2 * steps)) < 1e-13
    assert error(2 * steps) > 1e-9


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_more_steps_than_dimensions_give_every_eigenvalue(size: int) -> None:
    values = np.linspace(-2, 3, size)
    matrix, q = _conjugate(values)
    operator = Recorded(matrix)
    density = spectral_density(operator, vectors=3, steps=size + 50)
    assert density.products == operator.products == 3 * size
    for rule, start in zip(density.quadratures, operator.seen[::size], strict=True):
        assert rule.exact
        np.testing.assert_allclose(rule.nodes, values, atol=1e-12)
        np.testing.assert_allclose(rule.weights, (start.numpy() @ q) ** 2, atol=1e-11)


def test_start_vectors_are_unit_vectors_that_differ() -> None:
    operator = Recorded(np.diag(np.arange(50.0)))
    spectral_density(operator, vectors=3, steps=4)
    starts = torch.stack(operator.seen[::4])
    overlaps = starts @ starts.T
    torch.testing.assert_close(overlaps.diagonal(), torch.ones(3, dtype=torch.float64))
    assert float(overlaps.triu(1).abs().max()) < 0.7


def test_few_distinct_eigenvalues_end_the_run_early() -> None:
    values = np.r_[np.zeros(80), np.full(15, 2.0), np.full(5, -1.0)]
    density = spectral_density(_conjugate(values)[0], vectors=5, steps=60)
    assert density.products == 5 * 3  # three distinct eigenvalues
    assert all(rule.exact for rule in density.quadratures)
    assert density.smallest == pytest.approx(-1, abs=1e-12)
    assert density.largest == pytest.approx(2, abs=1e-12)
    assert density.width == pytest.approx(3, abs=1e-12)


@pytest.mark.parametrize(("matrix", "value"), [(np.zeros((9, 9)), 0.0), (np.eye(9) * -4, -4.0)])
def test_a_spectrum_of_one_point(matrix: np.ndarray, value: float) -> None:
    density = spectral_density(matrix, vectors=3)
    assert density.products == 3
    assert density.trace.value == pytest.approx(9 * value)
    assert density.trace.standard_error == pytest.approx(0, abs=1e-12)
    assert density.negative_mass.value == pytest.approx(float(value < 0))
    assert trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)
    assert density.grid[density.density.argmax()] == pytest.approx(value, abs=density.sigma)


def test_trace_and_frobenius_norm_are_unbiased_with_honest_errors() -> None:
    values = np.random.default_rng(3).standard_normal(30)
    densities = _many(np.diag(values), 300, vectors=4, steps=2)
    for name, truth, powers in [
        ("trace", values.sum(), values),
        ("frobenius_squared", values @ values, values**2),
    ]:
        estimates = [getattr(density, name) for density in densities]
        found = np.array([estimate.value for estimate in estimates])
        _assert_honest(found, np.array([estimate.standard_error for estimate in estimates]), truth)
        # For v uniform on the sphere, n v^T B v has this variance.
        variance = 2 * 30 / 32 * (powers @ powers - powers.sum() ** 2 / 30)
        assert found.var() == pytest.approx(variance / 4, rel=0.25)


def test_shares_are_unbiased_with_honest_errors() -> None:
    values = np.r_[np.linspace(-2, -1, 5), np.zeros(8), np.linspace(0.5, 4, 7)]
    densities = _many(np.diag(values), 120, vectors=6, steps=20)
    for estimates, truth in [
        ([d.share_below(1.0) for d in densities], (values < 1).mean()),
        ([d.negative_share() for d in densities], 5 / 20),
        ([d.moment(3) for d in densities], (values**3).mean()),
        ([d.mean(np.exp) for d in densities], np.exp(values).mean()),
    ]:
        found = np.array([e.value for e in estimates])
        _assert_honest(found, np.array([e.standard_error for e in estimates]), truth)


def test_the_negative_mass_is_a_ratio_with_an_honest_error() -> None:
    # Most of the mass is negative: numerator and denominator of the ratio go up and down together.
    values = np.r_[np.linspace(-9, -1, 30), np.zeros(50), np.linspace(0.5, 1, 20)]
    estimates = [d.negative_mass for d in _many(np.diag(values), 100, vectors=10, steps=12)]
    truth = -values[values < 0].sum() / np.abs(values).sum()
    found = np.array([e.value for e in estimates])
    # A ratio of means has a bias of the order of its variance.
    assert found.mean() == pytest.approx(truth, abs=found.var() + 4 * found.std() / np.sqrt(100))
    errors = np.array([e.standard_error for e in estimates])
    assert 0.8 < np.sqrt((errors**2).mean()) / found.std() < 1.25


def test_the_kernel_is_not_counted_as_negative() -> None:
    noise = np.random.default_rng(0).uniform(-1e-9, 1e-9, 600)
    values = np.r_[np.full(300, -1.0), noise, np.full(100, 5.0)]
    density = spectral_density(np.diag(values), vectors=10, steps=40)
    share, mass = density.negative_share(), density.negative_mass
    assert abs(share.value - 0.3) < 4 * share.standard_error < 0.1
    assert abs(mass.value - 0.3 / 0.8) < 4 * mass.standard_error < 0.2
    assert density.share_below(1e-6).value > 0.85
    assert density.negative_share(tol=0.2).value == 0  # all are above -0.2 x 6


@given(
    values=st.lists(st.integers(-9, 9), min_size=1, max_size=25),
    steps=st.integers(1, 12),
    x=st.integers(-10, 9).map(lambda i: i + 0.5),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_the_share_below_lies_within_its_bounds(values: list[int], steps: int, x: float, seed: int) -> None:
    operator = Recorded(np.diag(np.array(values, np.float64)))
    density = spectral_density(operator, vectors=1, steps=steps, seed=seed)
    weights = operator.seen[0].numpy() ** 2
    truth = weights[np.array(values) < x].sum()
    lower, upper = density.bounds_below(x)
    assert lower - 1e-9 <= truth <= upper + 1e-9
    assert lower - 1e-9 <= density.share_below(x).value <= upper + 1e-9
    if density.quadratures[0].exact:
        assert upper - lower < 1e-9


def test_the_bounds_are_wide_where_steps_do_not_resolve_the_spectrum_and_narrow_where_they_do() -> None:
    values = np.r_[np.linspace(-1, 1, 500), 40, 41]
    density = spectral_density(np.diag(values), vectors=3, steps=20)
    lower, upper = density.bounds_below(0.0)
    assert 0.02 < upper - lower < 0.4
    lower, upper = density.bounds_below(-1.5)
    assert lower == 0
    assert upper < 0.03


@pytest.mark.parametrize(
    ("points", "sigma"), [(20, None), (200, None), (1000, None), (1000, 0.02), (300, 2.0)]
)
def test_the_density_integrates_to_one(points: int, sigma: float | None) -> None:
    values = np.r_[np.random.default_rng(0).standard_normal(60), 12.0]
    density = spectral_density(np.diag(values), vectors=3, points=points, sigma=sigma)
    assert len(density.grid) == len(density.density) == len(density.standard_error) == points
    assert trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)
    assert density.sigma == (sigma or pytest.approx(density.width / min(300, points - 11)))
    mean = trapezoid(density.density * density.grid, density.grid)
    assert mean == pytest.approx(density.moment(1).value, abs=1e-4)


def test_the_density_is_that_of_the_spectrum_and_its_error_is_honest() -> None:
    rng = np.random.default_rng(1)
    values = np.r_[rng.uniform(-1, 2, 300), rng.normal(6, 0.3, 100)]
    scores = []
    for seed in range(12):
        density = spectral_density(np.diag(values), vectors=10, steps=40, sigma=0.4, points=60, seed=seed)
        distances = (density.grid[:, None] - values) / 0.4
        truth = np.exp(-(distances**2) / 2).mean(1) / (0.4 * np.sqrt(2 * np.pi))
        assert np.abs(density.density - truth).max() < 0.1 * truth.max()
        inside = truth > 0.1 * truth.max()
        scores.append((density.density - truth)[inside] / density.standard_error[inside])
    score = np.stack([s[:30] for s in scores])
    assert 0.8 < np.sqrt((score**2).mean()) < 1.4  # Student's t with 9 degrees of freedom: 1.13


def test_the_grid_reaches_five_sigmas_beyond_the_spectrum() -> None:
    values = np.r_[np.linspace(-1, 2, 30), 7.0]
    for sigma, points in ((None, 400), (0.3, 64)):
        density = spectral_density(np.diag(values), vectors=2, points=points, sigma=sigma)
        ends = density.smallest - 5 * density.sigma, density.largest + 5 * density.sigma
        np.testing.assert_allclose(density.grid, np.linspace(*ends, points), rtol=1e-12)
        assert ends == pytest.approx((-1 - 5 * density.sigma, 7 + 5 * density.sigma))


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ([0.0, 0.0, 0.0], 1.0),  # no scale at all
        ([-4.0, -4.0, -4.0], 4.0),  # one point: 1/300 of its size
        ([-4.0, -4.0 + 1e-7, -4.0], 4.0),  # one, as far as rounding can tell
        ([-4.0, -4.0 + 1e-5, -4.0], 1e-5),  # narrow, but no point
        ([4.0 - 1e-5, 4.0, 4.0], 1e-5),
    ],
)
def test_the_default_sigma_of_narrow_spectra(values: list[float], width: float) -> None:
    density = spectral_density(np.diag(values), vectors=2)
    assert density.sigma == pytest.approx(width / 300, rel=1e-6)


@pytest.mark.parametrize("vectors", [2, 5])
def test_the_density_and_its_error_are_mean_and_scatter_of_gaussian_mixtures(vectors: int) -> None:
    density = spectral_density(np.diag(np.arange(40.0)), vectors=vectors, steps=6, sigma=2.0, points=50)
    curves = np.array(
        [
            norm.pdf(density.grid[:, None], rule.nodes, density.sigma) @ rule.weights
            for rule in density.quadratures
        ]
    )
    np.testing.assert_allclose(density.density, curves.mean(0), rtol=1e-12)
    np.testing.assert_allclose(density.standard_error, sem(curves, axis=0), rtol=1e-10)


def test_an_eigenvalue_at_x_is_not_below_x() -> None:
    density = spectral_density(np.zeros((9, 9)), vectors=2)
    assert density.share_below(0.0) == Estimate(0.0, 0.0)
    assert density.share_below(1e-300).value == pytest.approx(1)
    assert density.bounds_below(0.0) == (0, 0)


def test_float32_agrees_with_float64() -> None:
    values = np.r_[np.random.default_rng(0).standard_normal(200), 30.0, 20.0]
    matrix = _conjugate(values)[0]
    single, double = (
        spectral_density(Recorded(matrix, dtype), vectors=4, steps=30)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.largest == pytest.approx(30, abs=1e-4)
    for power in (1, 2, 3):
        assert single.moment(power).value == pytest.approx(double.moment(power).value, rel=1e-4, abs=1e-4)
    assert np.abs(single.density - double.density).max() < 1e-2 * double.density.max()


def test_the_seed_alone_decides_and_global_streams_are_untouched() -> None:
    matrix = np.diag(np.arange(40.0))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again, other = (spectral_density(matrix, vectors=2, steps=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()
    np.testing.assert_array_equal(first.density, again.density)
    assert first.trace != other.trace


def test_one_start_vector_knows_no_standard_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = spectral_density(np.diag(np.arange(20.0)), vectors=1, steps=5)
        assert np.isnan(density.trace.standard_error)
        assert np.isnan(density.standard_error).all()
        assert np.isfinite(density.density).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vectors": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"points": 5}, "too few"),
        ({"sigma": 0.0}, "positive"),
        ({"sigma": float("nan")}, "positive"),
    ],
)
def test_numbers_that_make_no_density_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(HessianError, match=words):
        spectral_density(np.eye(3), **options)


def test_a_sigma_finer_than_the_grid_says_how_many_points_it_needs() -> None:
    matrix = np.diag(np.arange(40.0))
    with pytest.raises(HessianError, match="finer") as error:
        spectral_density(matrix, sigma=0.0103, points=100)
    found = re.search(r"points=(\d+)", str(error.value))
    assert found
    points = int(found[1])
    density = spectral_density(matrix, sigma=0.0103, points=points)
    assert trapezoid(density.density, density.grid) == pytest.approx(1, abs=1e-5)
    with pytest.raises(HessianError, match="finer"):
        spectral_density(matrix, sigma=0.0103, points=points - 1)


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(HessianError, match="not finite"):
        spectral_density(np.diag([1.0, np.inf, 2.0]))
