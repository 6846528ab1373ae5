"""Small formulas of store, fit and controls, with answers that were found in another way."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch

from probes import ArrayFeatures, ProbeError, code_length, fit_probes, selectivity
from probes.controls.neighbours import _nearest
from probes.digests import array_digest, mixed
from probes.fit import metric as metric_module
from probes.fit.certificate import duality_gap
from probes.fit.features import Rows, Scaling
from probes.fit.metric import Gram, Metric
from probes.fit.softmax import Softmax
from probes.fit.splits import Splits, require_classes
from probes.fit.strengths import from_strong_to_weak
from probes.fit.views import RowSubset
from probes.store.columns import Column, Digest, file_name, hexadecimal

from .fitting import clusters, standardised

CPU = torch.device("cpu")


def rows_of(x, memory=2**30):
    return Rows(x, Scaling.of(x, "x"), memory, CPU)


# -- the certificate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize("l2", [0.5, 2.0])
def test_the_gap_of_a_bias_out_of_balance_by_hand(size, l2):
    """All rows answer (0.6, 0.4) and classes are as frequent: t = 1/6 and q = (0, 1), whose entropy is 0."""
    frequency, answer = torch.tensor([[0.5, 0.5], [0.6, 0.4]], dtype=torch.float64)
    theta = torch.zeros(2, size + 1).double()
    theta[:, -1] = answer.log()
    gradient = torch.zeros_like(theta)
    gradient[:, -1] = answer - frequency
    loss = -float(answer.log().mean())
    entropy = -float((answer * answer.log()).sum())
    least = 5 / 6 * entropy - (2 / 6 * size**0.5) ** 2 / (2 * l2)
    assert duality_gap(loss, gradient, theta, l2, frequency) == pytest.approx(loss - least, rel=1e-12)


def test_the_gap_of_a_mixture_by_hand():
    """As before with three classes, so that q = (0, 1/2, 1/2) has an entropy, and with weights."""
    frequency, mean = torch.tensor([1, 1, 1]).double() / 3, torch.tensor([0.5, 0.25, 0.25]).double()
    theta = torch.tensor([[0.3, -1.0, 0.2], [0.1, 0.5, -0.3], [-0.2, 0.4, 0.1]]).double()
    gradient = torch.tensor([[0.03, -0.01, 0.0], [0.02, 0.0, 0.0], [0.0, 0.04, 0.0]]).double()
    gradient[:, -1] = mean - frequency
    loss, l2 = 0.9, 0.3
    t = 1 - (1 / 3) / 0.5
    entropy = (1 - t) * (loss - float((gradient * theta).sum())) + t * np.log(2)
    norm = float(gradient[:, :-1].square().sum()) ** 0.5 + 2 * t * 2**0.5
    expected = loss + l2 / 2 * float(theta[:, :-1].square().sum()) - entropy + norm**2 / (2 * l2)
    assert duality_gap(loss, gradient, theta, l2, frequency) == pytest.approx(expected, rel=1e-12)


# -- the metric --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.1, 1e-7])  # factored in float32, and in float64
def test_the_metric_solves_the_hessian_at_no_weights(l2):
    x, y = clusters(200, 6, 3)
    softmax = Softmax(rows_of(x), torch.from_numpy(y), 3)
    metric = Metric(softmax, Gram(softmax.rows, 4096), l2)
    z = standardised(x)[:: 200 // 48]  # what the Gram matrix rests on
    frequency = np.bincount(y) / len(y)
    hessian = (frequency * (1 - frequency)).mean() * z.T @ z / len(z)
    gradient = np.random.default_rng(0).standard_normal((3, 7))
    step = metric.contravariant(metric.covariant(torch.from_numpy(gradient)))
    assert step.dtype == torch.float64
    np.testing.assert_allclose(
        step[:, :-1], np.linalg.solve(hessian + l2 * np.eye(6), gradient[:, :-1].T).T, rtol=2e-4
    )
    np.testing.assert_allclose(step[:, -1], gradient[:, -1] / frequency, rtol=1e-5)


def test_a_metric_of_dependent_features_can_be_made():
    x, y = clusters(40, 3, 2)
    softmax = Softmax(rows_of(np.tile(x, 50)), torch.from_numpy(y), 2)
    for l2 in (1e-12, 1e-4, 1.0):
        step = Metric(softmax, Gram(softmax.rows, 4096), l2).covariant(torch.ones(2, 151))
        assert step.isfinite().all()


def test_a_factor_that_float32_cannot_give_is_found_in_float64(monkeypatch):
    matrix = torch.full((3, 3), 1.0)  # singular
    monkeypatch.setattr(metric_module, "_SOUND", 0.0)
    factor = metric_module._factor(matrix.clone(), 1e-9)
    np.testing.assert_allclose(factor @ factor.T, matrix, atol=1e-5)


@pytest.mark.parametrize(("n", "widest", "stride"), [(1000, 4096, 12), (1000, 2, 62), (90, 4096, 1)])
def test_a_gram_matrix_rests_on_evenly_spaced_rows(n, widest, stride):
    x, _ = clusters(n, 10, 2)
    gram = Gram(rows_of(x), widest)
    z = standardised(x)[::stride]
    assert [block.stop - block.start for block in gram.blocks] == ([10] if widest > 10 else [2] * 5)
    assert (gram.blocks[0].start, gram.blocks[-1].stop) == (0, 10)
    for block, found in zip(gram.blocks, gram.grams, strict=True):
        np.testing.assert_allclose(found, z[:, block].T @ z[:, block] / len(z), atol=1e-5)


def test_a_gram_matrix_of_several_panels_and_blocks_of_rows():
    x, _ = clusters(9000, 300, 2)
    (gram,) = Gram(rows_of(x), 4096).grams
    z = standardised(x)[:: 9000 // 2400]
    np.testing.assert_allclose(gram, z.T @ z / len(z), atol=2e-5)


# -- labels and strengths ----------------------------------------------------------------------------------


def test_classes_are_positions_among_those_that_occur():
    train, test = (ArrayFeatures({"x": np.zeros((len(y), 1))}, np.array(y)) for y in ([2, 5, 2, 9], [9, 2]))
    splits = Splits.of(train, None, test, None)
    assert splits.num_classes == 10
    assert splits.present.tolist() == [2, 5, 9]
    assert splits.classes("train").tolist() == [0, 1, 0, 2]
    assert splits.classes("test").tolist() == [2, 0]
    assert list(splits.tables) == ["train", "test"]
    assert require_classes({"train": np.array([0, 1])}, 2)[0] == 2
    with pytest.raises(ProbeError, match="with num_classes=9 labels are 0 to 8"):
        Splits.of(train, None, test, 9)


def test_strengths_come_from_strong_to_weak_and_once():
    assert from_strong_to_weak([1e-3, 1, 0.1, 1], choosable=True) == [1.0, 0.1, 1e-3]
    assert from_strong_to_weak(0.5, choosable=False) == [0.5]


# -- controls ----------------------------------------------------------------------------------------------


def described(table, l2, seed, classes):
    """Bits of the prequential code, from probabilities of fits that begin from nothing."""
    order = np.random.default_rng(seed).permutation(table.n)
    ends = [table.n]
    while ends[0] // 2 >= 4 * classes:
        ends.insert(0, ends[0] // 2)
    bits = ends[0] * np.log2(classes)
    for known, end in pairwise(ends):
        fitted = fit_probes(
            RowSubset(table, order[:known]), l2=l2, num_classes=classes, tol=1e-9, progress=False
        )
        following = order[known:end]
        p = np.exp(fitted.classifiers["x"].predict_log_proba(table["x"][following]))
        own = p[np.arange(len(following)), table.labels[following]]
        bits -= np.log2((known * own + 1 / classes) / (known + 1)).sum()
    return bits


@pytest.mark.parametrize("strengths", [(1e-2,), (1e-1, 1e-2), (1.0, 1e-1, 1e-2, 1e-3)])
def test_bits_are_those_of_the_code_and_of_the_strengths_number(strengths):
    x, y = clusters(130, 5, 3)
    table = ArrayFeatures({"x": x}, y)
    (code,) = code_length(train=table, l2=strengths, seed=5, tol=1e-9, progress=False)
    lengths = {l2: described(table, l2, 5, 3) for l2 in strengths}
    best = min(lengths, key=lengths.__getitem__)
    assert code.l2 == best
    assert code.bits == pytest.approx(lengths[best] + np.log2(len(strengths)), rel=1e-5)
    assert code.n == 130
    assert code.uniform_bits == pytest.approx(130 * np.log2(3))
    assert code.compression == pytest.approx(130 * np.log2(3) / code.bits)
    assert [known for known, _ in code.blocks] == [16, 32, 65]


def test_blocks_begin_at_four_rows_per_class_and_add_up():
    x, y = clusters(96, 5, 3)
    table = ArrayFeatures({"x": x}, y)
    for n, begins in ((96, [12, 24, 48]), (95, [23, 47]), (12, []), (5, [])):
        part = RowSubset(table, np.arange(n))
        options = {"l2": (1e-1, 1e-2), "num_classes": 3, "progress": False}
        code, same = (code_length(train=part, **options, **seed)[0] for seed in ({}, {"seed": 0}))
        assert code == same
        assert [known for known, _ in code.blocks] == begins
        ends = [*begins, n]
        of_blocks = sum(
            (end - known) * bits for end, (known, bits) in zip(ends[1:], code.blocks, strict=True)
        )
        assert code.bits == pytest.approx(ends[0] * np.log2(3) + of_blocks + 1)


def test_classes_may_be_more_than_occur():
    x, y = clusters(40, 3, 2)
    (code,) = code_length(train=ArrayFeatures({"x": x}, y), l2=0.1, num_classes=5, progress=False)
    assert code.uniform_bits == pytest.approx(40 * np.log2(5))
    assert [known for known, _ in code.blocks] == [20]


def test_selectivity_is_the_difference_and_its_error_the_root_of_squares():
    x, y = clusters(200, 6, 3)
    (found,) = selectivity(train=ArrayFeatures({"x": x}, y), l2=1e-2, progress=False)
    assert found.selectivity == found.control_error - found.error
    assert found.selectivity_se == pytest.approx((found.error_se**2 + found.control_error_se**2) ** 0.5)
    assert found.majority_error == pytest.approx(1 - np.bincount(y).max() / 200)
    assert (found.layer, found.n) == ("x", 200)


def test_the_nearest_rows_over_several_blocks(monkeypatch):
    monkeypatch.setattr("probes.fit.features._MOST_ROWS", 7)
    x, _ = clusters(50, 3, 2)
    rows = rows_of(x)
    z = torch.from_numpy(standardised(x)).float()
    expected = torch.cdist(z, z).topk(5, largest=False).indices
    assert torch.equal(_nearest(rows, z, 5).sort().values, expected.sort().values)


# -- digests and columns -----------------------------------------------------------------------------------


def test_mixing_is_that_of_splitmix64():
    """The first three numbers of the published generator, seeded by 0."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([gamma * k % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mixed(states).tolist() == expected


def test_a_digest_is_a_sum_over_rows_that_only_integers_compute():
    x = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    weights = [int(w) | 1 for w in np.random.PCG64(20160104).random_raw(5)]
    total = 0
    for number, row in enumerate(x, start=100):
        own = sum(int(word) * weight for word, weight in zip(row.view(np.uint32), weights, strict=True))
        place = mixed(np.array([number], dtype=np.uint64))[0]
        total += int(mixed(np.array([(own + int(place)) % 2**64], dtype=np.uint64))[0])
    numbers = np.arange(100, 120)
    assert array_digest(x, numbers) == total % 2**64
    parts = [array_digest(x[part], numbers[part]) for part in (slice(13, 20), slice(0, 4), slice(4, 13))]
    assert sum(parts) % 2**64 == total % 2**64
    assert hexadecimal(2**64 + 255) == "00000000000000ff"


def test_rows_too_wide_for_one_go_have_the_same_digest(monkeypatch):
    x, numbers = np.arange(60, dtype=np.float32).reshape(6, 10), np.arange(6)
    whole = array_digest(x, numbers)
    for at_once in (1, 10, 25):
        monkeypatch.setattr("probes.digests._AT_ONCE", at_once)
        assert array_digest(x, numbers) == whole


def test_a_column_is_an_npy_file(tmp_path):
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    column = Column(tmp_path / "x.npy", "float32", 7, (3,))
    assert column.row_bytes == 12
    column.create()
    assert column.path.stat().st_size == column.file_bytes
    with column.path.open("r+b") as file:
        column.write(file.fileno(), 3, x[3:])
        column.write(file.fileno(), 0, x[:3])
    with pytest.raises(ProbeError, match="cannot be read"):
        column.read()
    assert np.array_equal(column.raw(), x)
    column.complete()
    assert np.array_equal(column.read(), x)
    written = io.BytesIO()
    np.save(written, x)
    assert column.path.read_bytes() == written.getvalue()
    assert Column(tmp_path / "y.npy", "int64", 7, ()).row_bytes == 8


def test_a_large_column_is_known_by_rows_spread_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr("probes.store.columns._WHOLE", 0)
    x = np.arange(1000, dtype=np.float32)[:, None]
    np.save(tmp_path / "x.npy", x)
    column = Column(tmp_path / "x.npy", "float32", 1000, (1,))
    numbers = np.unique(np.linspace(0, 999, 64).astype(int))
    assert column.sample() == hexadecimal(array_digest(x[numbers], numbers))
    whole = hexadecimal(array_digest(x, np.arange(1000)))
    column.check(Digest(whole, column.sample()))
    column.check(Digest(whole, "not looked at"), fully=True)
    column.check(Digest("not looked at", column.sample()))
    for digest, fully in ((Digest("0", column.sample()), True), (Digest(whole, "0"), False)):
        with pytest.raises(ProbeError, match="does not hold what was written there"):
            column.check(digest, fully=fully)


@pytest.mark.parametrize("other", [np.zeros((7, 3), np.int32), np.zeros((3, 7), np.float32)])
def test_a_column_of_the_same_size_and_another_kind_is_refused(tmp_path, other):
    np.save(tmp_path / "x.npy", other)
    with pytest.raises(ProbeError, match=r"x\.npy holds .* instead of float32 of shape \(7, 3\)"):
        Column(tmp_path / "x.npy", "float32", 7, (3,)).read()


@pytest.mark.parametrize("chunk", [1, 100, 116, 10**9])
def test_a_column_is_checked_in_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("probes.store.columns._CHUNK", chunk)
    x = np.random.default_rng(0).standard_normal((7, 29)).astype(np.float32)  # 116 bytes a row
    np.save(tmp_path / "x.npy", x)
    column = Column(tmp_path / "x.npy", "float32", 7, (29,))
    digest = Digest(hexadecimal(array_digest(x, np.arange(7))), "")
    column.check(digest)
    for row in (0, 3, 6):
        other = x.copy()
        other[row, 28] += 1
        np.save(tmp_path / "x.npy", other)
        with pytest.raises(ProbeError, match="does not hold"):
            column.check(digest)


def test_file_names_differ_on_any_file_system():
    names = ["layer1.0", "Layer1.0", "a/b", "a%2Fb", "con", "x" * 150, "x" * 151, "x" * 152, "output:1", "é"]
    files = [file_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert all(len(file) <= 163 and file.endswith(".npy") and "/" not in file for file in files)
    assert files[0] == "layer1.0.npy"
    assert files[5] == "x" * 150 + ".npy"
    assert files[6].startswith("x" * 150 + "-")
