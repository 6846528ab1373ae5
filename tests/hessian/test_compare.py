"""Comparisons of spectra, against rotations that are known."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessian.compare import compare, gradient_overlap
from hessian.spectrum.eigenpairs import extreme_eigenpairs
from hessian.spectrum.results import Eigenpair, Spectrum
from thermoscope.errors import HessianError


def _spectrum(
    values: np.ndarray, vectors: np.ndarray, largest: int, smallest: int, residual: float = 0.0
) -> Spectrum:
    """From ascending eigenvalues and eigenvectors as columns."""
    pairs = [Eigenpair(float(x), v, residual, True) for x, v in zip(values, vectors.T, strict=True)]
    top, bottom = pairs[::-1][:largest], pairs[:smallest]
    return Spectrum(tuple(top), tuple(bottom), float(values[-1] - values[0]), 1e-3, 0, 0.0, "dense")


def _of(matrix: np.ndarray, largest: int = 3, smallest: int = 2) -> Spectrum:
    return _spectrum(*np.linalg.eigh(matrix), largest, smallest)


def _symmetric(size: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((size, size))
    return noise + noise.T


def _frame(size: int, count: int, seed: int) -> np.ndarray:
    """Orthonormal columns."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, count)))[0]


def test_a_spectrum_and_itself() -> None:
    spectrum = _of(_symmetric(20, 0))
    comparison = compare(spectrum, spectrum)
    for end, count in [(comparison.largest, 3), (comparison.smallest, 2)]:
        np.testing.assert_allclose(end.overlaps, np.eye(count), atol=1e-14)
        np.testing.assert_allclose(end.angles, np.zeros(count), atol=1e-14)
        np.testing.assert_array_equal(end.differences, np.zeros(count))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_long_vectors_have_the_angles_and_overlaps_of_the_whole(dtype: type) -> None:
    size = 200_001  # several chunks, the last one of another length
    v = _frame(size, 4, 0).astype(dtype)
    w = np.linalg.qr(v + 0.003 * np.arange(1, 5) * _frame(size, 4, 1))[0].astype(dtype)
    values = np.arange(4.0)
    end = compare(_spectrum(values, v, 4, 0), _spectrum(values, w, 4, 0)).largest
    angles = scipy.linalg.subspace_angles(v.astype(np.float64), w.astype(np.float64))[::-1]
    assert angles[0] < 0.004
    assert angles[-1] > 0.01
    np.testing.assert_allclose(end.angles, angles, rtol=1e-10)
    np.testing.assert_allclose(end.overlaps, np.abs(v.T.astype(np.float64) @ w)[::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize("angle", [1e-9, 1e-3, 0.5, np.pi / 2])
def test_an_angle_that_is_known(angle: float) -> None:
    """Arc cosines of overlaps would see nothing below 1e-8."""
    q = _frame(50, 3, 0)
    turned = np.stack([np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 1], -q[:, 2]], axis=1)
    end = compare(
        _spectrum(np.array([1.0, 2.0]), q[:, [0, 2]], 2, 0), _spectrum(np.array([1.0, 2.0]), turned, 2, 0)
    ).largest
    np.testing.assert_allclose(end.angles, [0, angle], rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(end.overlaps, [[1, 0], [0, np.cos(angle)]], atol=1e-14)


@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_rotated_multiplicities_span_the_same(seed: int, count: int) -> None:
    q, rotation = _frame(12, count, seed), _frame(count, count, seed + 1)
    values = np.full(count, 2.0)
    comparison = compare(_spectrum(values, q, 0, count), _spectrum(values, q @ rotation, 0, count))
    np.testing.assert_allclose(comparison.smallest.angles, 0, atol=1e-13)
    np.testing.assert_allclose(comparison.smallest.overlaps, np.abs(rotation), atol=1e-13)


@given(seed=st.integers(0, 1000), size=st.integers(4, 15), noise=st.floats(1e-6, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_perturbation_moves_values_and_angles_no_farther_than_theory_allows(
    seed: int, size: int, noise: float
) -> None:
    matrix = _symmetric(size, seed)
    disturbed = matrix + noise * _symmetric(size, seed + 1)
    norm = np.linalg.norm(disturbed - matrix, 2)
    rounding = 1e-12  # of eigenvalues up to about 20, beside which differences can be tiny
    a, b = _of(matrix, 2, 1), _of(disturbed, 2, 1)
    there, back = compare(a, b), compare(b, a)
    values, others = np.linalg.eigvalsh(matrix), np.linalg.eigvalsh(disturbed)
    np.testing.assert_allclose(there.largest.differences, (others - values)[::-1][:2], atol=rounding)
    for end in (there.largest, there.smallest):
        assert np.abs(end.differences).max() <= norm + rounding  # Weyl
        assert (np.diff(end.angles) >= 0).all()
    gap = values[-2] - others[-3]
    if gap > 0:  # Davis and Kahan
        assert np.sin(there.largest.angles[-1]) <= norm / gap + rounding
    np.testing.assert_allclose(back.largest.angles, there.largest.angles, atol=1e-12)
    np.testing.assert_allclose(back.largest.overlaps, there.largest.overlaps.T, atol=1e-12)
    np.testing.assert_array_equal(back.smallest.differences, -there.smallest.differences)


def test_differences_are_paired_from_the_outside_and_come_with_their_uncertainty() -> None:
    q = np.eye(6)
    a = _spectrum(np.array([-4.0, -1, 0, 1, 2, 10]), q, 2, 2, residual=0.1)
    b = _spectrum(np.array([-2.0, -1.5, 0, 1, 3, 11]), q, 2, 2, residual=0.02)
    comparison = compare(a, b)
    np.testing.assert_allclose(comparison.largest.values_a, [10, 2])
    np.testing.assert_allclose(comparison.largest.values_b, [11, 3])
    np.testing.assert_allclose(comparison.largest.differences, [1, 1])
    np.testing.assert_allclose(comparison.largest.relative_differences, [0.1, 0.5])
    np.testing.assert_allclose(comparison.smallest.differences, [2, -0.5])
    np.testing.assert_allclose(comparison.smallest.relative_differences, [0.5, -0.5])
    np.testing.assert_allclose(comparison.smallest.uncertainties, [0.12, 0.12])


def test_a_difference_relative_to_zero_is_not_a_number() -> None:
    q = np.eye(2)
    end = compare(_spectrum(np.zeros(2), q, 2, 0), _spectrum(np.array([0.0, 3.0]), q, 2, 0)).largest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(end.relative_differences, [np.inf, np.nan])


def test_of_different_numbers_of_pairs_the_common_ones_are_compared() -> None:
    first, second = _symmetric(20, 0), _symmetric(20, 1)
    mixed = compare(_of(first, 5, 0), _of(second, 3, 4))
    common = compare(_of(first, 3, 4), _of(second, 3, 4))
    np.testing.assert_allclose(mixed.largest.angles, common.largest.angles)
    np.testing.assert_allclose(mixed.largest.overlaps, common.largest.overlaps)
    np.testing.assert_array_equal(mixed.largest.differences, common.largest.differences)
    assert len(mixed.smallest.angles) == len(mixed.smallest.differences) == 0
    assert mixed.smallest.overlaps.shape == (0, 0)


def test_pairs_that_span_the_whole_space() -> None:
    comparison = compare(_of(_symmetric(3, 0), 3, 0), _of(_symmetric(3, 1), 3, 0))
    np.testing.assert_allclose(comparison.largest.angles, 0, atol=1e-13)
    np.testing.assert_allclose((comparison.largest.overlaps**2).sum(0), 1)


def test_does_the_leading_vector_of_a_subset_stay() -> None:
    rng = np.random.default_rng(0)
    examples = rng.standard_normal((4000, 30)) * np.r_[5, 3, np.ones(28)]
    whole, part = (x.T @ x / len(x) for x in (examples, examples[:200]))
    comparison = compare(extreme_eigenpairs(part, 2, 1, tol=1e-8), extreme_eigenpairs(whole, 2, 1, tol=1e-8))
    leading = np.abs(np.linalg.eigh(part)[1][:, -1] @ np.linalg.eigh(whole)[1][:, -1])
    assert comparison.largest.overlaps[0, 0] == pytest.approx(leading, abs=1e-6)
    assert leading > 0.98
    assert comparison.smallest.overlaps[0, 0] < 0.9


def test_what_cannot_be_compared_is_refused() -> None:
    spectrum = _of(_symmetric(6, 0))

    def laid_out(**layout: tuple[int, ...]) -> Spectrum:
        return dataclasses.replace(spectrum, layout=layout)

    with pytest.raises(HessianError, match="different sizes, 6 and 7"):
        compare(spectrum, _of(_symmetric(7, 0)))
    with pytest.raises(HessianError, match="differ in w, b"):
        compare(laid_out(w=(2, 2), b=(2,)), laid_out(w=(3,), c=(3,)))
    with pytest.raises(HessianError, match="their order differs"):
        compare(laid_out(w=(2, 2), b=(2,)), laid_out(b=(2,), w=(2, 2)))
    with pytest.raises(HessianError, match="no eigenpairs"):
        compare(spectrum, _of(_symmetric(6, 0), 0, 0))
    with pytest.raises(HessianError, match="same end"):
        compare(_of(_symmetric(6, 0), 2, 0), _of(_symmetric(6, 0), 0, 2))
    # A plain matrix does not say which parameters it is of.
    assert compare(laid_out(w=(6,)), spectrum).largest.overlaps[0, 0] == pytest.approx(1)
    assert compare(laid_out(w=(6,)), laid_out(w=(6,))).largest.overlaps[0, 0] == pytest.approx(1)


@given(seed=st.integers(0, 1000), size=st.integers(2, 12), scale=st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_a_gradient_is_the_sum_of_its_shares(seed: int, size: int, scale: float) -> None:
    gradient = scale * np.random.default_rng(seed).standard_normal(size)
    values, vectors = np.linalg.eigh(_symmetric(size, seed))
    spectrum = _spectrum(values, vectors, 1, size - 1)
    overlap = gradient_overlap(gradient, spectrum)
    assert overlap.norm == pytest.approx(np.linalg.norm(gradient))
    assert overlap.largest.share + overlap.smallest.share == pytest.approx(1)
    np.testing.assert_allclose(overlap.smallest.shares, overlap.smallest.cosines**2)
    rebuilt = overlap.largest.cosines @ vectors.T[-1:] + overlap.smallest.cosines @ vectors.T[:-1]
    np.testing.assert_allclose(overlap.norm * rebuilt, gradient, atol=1e-12 * scale * size)


def test_a_gradient_along_one_vector_has_its_share_there() -> None:
    spectrum = _spectrum(np.arange(8.0), np.eye(8, dtype=np.float32), 2, 3)
    gradient = torch.zeros(8, requires_grad=True) + torch.tensor([0, 0, 0, 0, 0, 0, -3.0, 4.0])
    overlap = gradient_overlap(gradient, spectrum)
    assert overlap.norm == pytest.approx(5)
    np.testing.assert_allclose(overlap.largest.cosines, [0.8, -0.6])
    np.testing.assert_allclose(overlap.largest.shares, [0.64, 0.36])
    assert overlap.largest.share == pytest.approx(1)
    assert overlap.smallest.share == 0
    empty = gradient_overlap(gradient, _spectrum(np.arange(8.0), np.eye(8), 0, 3)).largest
    assert len(empty.cosines) == 0
    assert empty.share == 0


@pytest.mark.parametrize(
    ("gradient", "words"),
    [
        (np.zeros(6), "zero"),
        (np.full(6, np.nan), "not finite"),
        (np.full(6, np.inf), "not finite"),
        (np.ones(5), "shape"),
        (np.ones((1, 6)), "shape"),
    ],
)
def test_a_gradient_without_a_direction_is_refused(gradient: np.ndarray, words: str) -> None:
    with pytest.raises(HessianError, match=words):
        gradient_overlap(gradient, _of(_symmetric(6, 0)))


def _known_to(vectors: np.ndarray, *angles: float | None) -> Spectrum:
    pairs = [Eigenpair(1.0, v, 0.0, True, a) for v, a in zip(vectors.T, angles, strict=True)]
    return Spectrum(tuple(pairs), (), 1.0, 1e-3, 0, 0.0, "dense")


def test_overlaps_are_as_uncertain_as_both_vectors() -> None:
    turn = 0.5
    v, w = np.eye(2), np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    low, high = compare(_known_to(v, 0.1, 0.0), _known_to(w, 0.2, 0.7)).largest.overlap_bounds
    np.testing.assert_allclose(
        low,
        [[np.cos(0.8), 0], [np.cos(np.pi / 2 - 0.5 + 0.2), 0]][:1]
        + [[np.cos(np.pi / 2 - 0.5 + 0.2), np.cos(1.2)]],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        high, [[np.cos(0.2), np.cos(np.pi / 2 - 1.3)], [np.cos(np.pi / 2 - 0.7), 1]], atol=1e-12
    )
    for angle in (np.pi / 2, None):
        bounds = compare(_known_to(v, angle, 0.0), _known_to(w, 0.0, 0.0)).largest.overlap_bounds
        np.testing.assert_allclose(bounds[:, 0], [[0, 0], [1, 1]], atol=1e-12)
        np.testing.assert_allclose(bounds[0, 1], bounds[1, 1], atol=1e-12)


def test_shares_of_a_gradient_are_as_uncertain_as_the_vector() -> None:
    overlap = gradient_overlap(np.array([3.0, 4.0]), _known_to(np.eye(2), 0.3, None))
    np.testing.assert_allclose(overlap.largest.doubts, [np.sin(0.3), 1])
    for turn in np.linspace(-0.3, 0.3, 13):  # any vector within the angle
        share = (np.array([3.0, 4.0]) @ [np.cos(turn), np.sin(turn)] / 5) ** 2
        assert abs(share - overlap.largest.shares[0]) <= overlap.largest.doubts[0]
