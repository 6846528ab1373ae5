"""Controls: random labels, code lengths, other read-outs, learning curves, other labels."""

import inspect

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from probes import (
    ArrayFeatures,
    ProbeError,
    code_length,
    fit_probes,
    learning_curve,
    nearest_neighbours,
    read_out,
    ridge,
    selectivity,
    with_labels,
)
from probes.fit.views import RowSubset, stratified_order

from .fitting import clusters, standardised


def table(*case, **options):
    x, y = clusters(*case, **options)
    noise = np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)
    return ArrayFeatures({"useful": x, "noise": noise}, y)


def parts(data, n=2):
    return [RowSubset(data, np.arange(i, data.n, n)) for i in range(n)]


def test_selectivity_tells_a_layer_that_knows_from_a_probe_that_remembers():
    few, many = table(400, 5, 4, noise=0.7), table(60, 200, 4)
    knows = {s.layer: s for s in selectivity(train=few, l2=1e-3, progress=False)}
    assert knows["useful"].selectivity > 0.4
    assert abs(knows["noise"].selectivity) < 4 * knows["noise"].selectivity_se
    assert knows["useful"].control_error == pytest.approx(knows["useful"].majority_error, abs=0.15)
    remembers = selectivity(train=many, l2=1e-4, progress=False)
    assert all(s.control_error == 0 and s.selectivity <= 0 for s in remembers)


def test_a_control_of_groups_is_measured_on_other_rows_of_the_same_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(30, size=900)
    words = np.eye(30, dtype=np.float32)[groups]  # features that name the group: any labelling can be learnt
    data = ArrayFeatures({"x": words}, groups % 3)
    train, test = parts(data)
    (s,) = selectivity(
        train=train, test=test, l2=1e-4, groups=groups[0::2], test_groups=groups[1::2], progress=False
    )
    assert s.n == test.n
    assert s.error == s.control_error == 0
    with pytest.raises(ProbeError, match="give all three"):
        selectivity(train=train, test=test, l2=1e-4, groups=groups[0::2])
    blind = ArrayFeatures(
        {"x": np.roll(words[1::2], 1, axis=1)}, groups[1::2] % 3
    )  # each names the next group
    (s,) = selectivity(
        train=train, test=blind, l2=1e-4, groups=groups[0::2], test_groups=groups[1::2], progress=False
    )
    assert s.error == 1
    assert s.control_error > 0.2, "measured on other rows than the task"


def test_seeds_decide_and_are_zero_if_not_given():
    data = table(60, 5, 2)
    for control in (
        lambda **seed: selectivity(train=data, l2=0.1, progress=False, **seed),
        lambda **seed: code_length(train=data, l2=0.1, progress=False, **seed),
        lambda **seed: learning_curve(train=data, l2=0.1, sizes=[30], progress=False, **seed).fits[0].train,
    ):
        assert control() == control(seed=0) != control(seed=1)


def test_code_length_is_short_for_what_a_layer_knows():
    data = table(600, 10, 4, noise=1)
    codes = {code.layer: code for code in code_length(train=data, progress=False)}
    assert codes["useful"].uniform_bits == 600 * 2
    assert codes["useful"].compression > 2
    assert codes["noise"].compression < 1.02
    rates = [bits for _, bits in codes["useful"].blocks]
    assert rates[-1] < rates[0]
    known = [t for t, _ in codes["useful"].blocks]
    assert known == [18, 37, 75, 150, 300]


def test_code_length_is_the_sum_over_blocks_also_with_classes_that_come_late():
    x, y = clusters(200, 5, 3)
    y[y == 2] = 1
    y[-1] = 2  # once only
    data = ArrayFeatures({"x": x}, y)
    (code,) = code_length(train=data, l2=[1e-2], progress=False)
    known = [t for t, _ in code.blocks]
    blocks = zip(known, [*known[1:], 200], code.blocks, strict=True)
    total = known[0] * np.log2(3) + sum((end - start) * bits for start, end, (_, bits) in blocks)
    assert code.bits == pytest.approx(total)
    assert np.isfinite(code.bits)


def test_nearest_neighbours_agree_with_scikit_learn():
    train, test = parts(table(900, 6, 7, noise=2))
    found = nearest_neighbours(train=train, test=test, k=15, progress=False)
    x = train["useful"].astype(float)
    scale = lambda z: (z - x.mean(0)) / x.std(0)  # noqa: E731
    model = KNeighborsClassifier(15).fit(scale(x), train.labels)
    p = (15 * model.predict_proba(scale(test["useful"])) + 1 / 7) / 16
    loss = -np.log(p[np.arange(test.n), test.labels])
    assert found["useful"].loss == pytest.approx(loss.mean(), rel=1e-6)
    assert found["useful"].loss_se == pytest.approx(loss.std() / test.n**0.5, rel=1e-6)
    assert found["useful"].error == pytest.approx((p.argmax(1) != test.labels).mean())
    assert found["noise"].error > found["useful"].error
    streamed = nearest_neighbours(train=train, test=test, k=15, memory=0, progress=False)
    assert streamed == found
    with pytest.raises(ProbeError, match="k=451: train has 450 rows"):
        nearest_neighbours(train=train, test=test, k=451)


@pytest.mark.parametrize("size", [12, 500])
def test_ridge_agrees_with_scikit_learn(size):
    train, test = parts(table(300, size, 6, noise=3))
    found = ridge(train=train, test=test, l2=1e-2, progress=False)
    z, one_hot = standardised(train["useful"]), np.eye(6)
    model = Ridge(alpha=1e-2 * train.n).fit(z, one_hot[train.labels])
    loss = ((model.predict(z) - one_hot[train.labels]) ** 2).sum(1)
    assert found["train"]["useful"].loss == pytest.approx(loss.mean(), rel=1e-6)
    assert found["train"]["useful"].error == pytest.approx(
        (model.predict(z).argmax(1) != train.labels).mean()
    )
    assert found["test"]["useful"].l2 == 1e-2


def test_read_outs_of_rows_without_the_last_class_and_their_intervals():
    data = table(300, 6, 7, noise=2)
    few = RowSubset(data, np.flatnonzero(data.labels == 1))
    for found in (
        nearest_neighbours(train=data, test=few, k=9, progress=False)["useful"],
        ridge(train=data, test=few, l2=1e-2, progress=False)["test"]["useful"],
    ):
        assert found.n == few.n
        interval = binomtest(round(found.error * few.n), few.n).proportion_ci(method="wilson")
        assert (found.error_low, found.error_high) == pytest.approx(interval, abs=1e-9)
        assert found.top5_error <= found.error
        assert (found.target, found.features, found.lr, found.steps) == ("y", 6, None, 0)
    z, theta = standardised(data["useful"]), np.eye(7)
    model = Ridge(alpha=1e-2 * data.n).fit(z, theta[data.labels])
    loss = ((model.predict(z) - theta[data.labels]) ** 2).sum(1)[data.labels == 1]
    assert found.loss == pytest.approx(loss.mean(), rel=1e-6)


@pytest.mark.parametrize("size", [12, 200])
def test_read_outs_do_not_depend_on_blocks_of_rows(monkeypatch, size):
    train, test = parts(table(300, size, 6, noise=3))
    ways = (
        lambda: ridge(train=train, valid=test, progress=False)["valid"]["useful"],
        lambda: nearest_neighbours(train=train, test=test, k=9, progress=False)["useful"],
    )
    whole = [way() for way in ways]
    monkeypatch.setattr("probes.fit.features._MOST_ROWS", 37)
    for one, way in zip(whole, ways, strict=True):
        found = way()
        assert (found.error, found.l2) == (one.error, one.l2)
        assert found.loss == pytest.approx(one.loss, rel=1e-9)


def test_ridge_chooses_its_strength_on_validation_rows():
    train, valid = parts(table(200, 150, 3, noise=5))
    found = ridge(train=train, valid=valid, progress=False)
    alone = {
        s: ridge(train=train, valid=valid, l2=s, progress=False)["valid"]["useful"].loss
        for s in (1, 1e-1, 1e-4)
    }
    assert found["valid"]["useful"].loss <= min(alone.values())
    with pytest.raises(ProbeError, match="give valid="):
        ridge(train=train)


def test_learning_curves_fall_with_more_rows_and_nest():
    train, test = parts(table(1600, 40, 4, noise=4))
    curve = learning_curve(train=train, test=test, l2=1e-1, progress=False)
    assert curve.sizes == (50, 100, 200, 400, 800)
    errors = [fit.test["useful"].error for fit in curve.fits]
    assert errors[-1] < errors[0] - 0.05
    assert [fit.train["useful"].n for fit in curve.fits] == list(curve.sizes)
    whole = fit_probes(train, l2=1e-1, progress=False)
    assert curve.fits[-1].train["useful"].loss == pytest.approx(whole.train["useful"].loss, rel=1e-4)
    for rows, sizes in ((80, (40, 80)), (79, (79,)), (30, (30,))):  # at least ten rows of each class
        few = RowSubset(train, stratified_order(train.labels, 0)[:rows])
        assert learning_curve(train=few, l2=1e-1, progress=False).sizes == sizes
    with pytest.raises(ProbeError, match="to 801 rows"):
        learning_curve(train=train, test=test, l2=1e-1, sizes=[801])


def test_every_beginning_of_a_stratified_order_has_the_classes_in_proportion():
    y = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(y, seed=3)
    assert sorted(order) == list(range(1000))
    assert set(y[order[:3]]) == {0, 1, 2}
    for n in (10, 100, 500):
        counts = np.bincount(y[order[:n]], minlength=3)
        np.testing.assert_allclose(counts, [0.6 * n, 0.3 * n, 0.1 * n], atol=1.5)


def test_rows_of_a_part_are_read_in_the_order_of_the_file():
    class File:
        shape, dtype, asked = (6, 2), np.dtype(np.float32), []

        def __getitem__(self, rows):
            self.asked.append(rows.tolist())
            return np.arange(12, dtype=np.float32).reshape(6, 2)[rows]

    data = ArrayFeatures({"x": np.zeros((6, 2))}, np.arange(6))
    data._features["x"] = File()
    part = RowSubset(data, np.array([4, 0, 5]))
    assert part["x"].tolist() == [[8, 9], [0, 1], [10, 11]]
    assert part.labels.tolist() == [4, 0, 5]
    assert File.asked == [[0, 4, 5]]


def test_other_labels_for_the_same_features():
    data = table(300, 6, 4)
    parity = with_labels(data, data.labels % 2)
    assert parity.layers == data.layers
    described = ArrayFeatures({"x": np.zeros((2, 1))}, np.arange(2), {"x": "avg:1"})
    assert with_labels(described, np.zeros(2, int)).reductions == {"x": "avg:1"}
    found = fit_probes(parity, l2=1e-2, progress=False)
    assert found.train["useful"].error < 0.3
    assert found.train.references[0].majority_error == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "control", [code_length, learning_curve, nearest_neighbours, read_out, ridge, selectivity]
)
def test_no_split_can_stand_for_another(control):
    splits = [
        p for p in inspect.signature(control).parameters.values() if p.name in ("train", "valid", "test")
    ]
    assert splits
    assert all(split.kind is split.KEYWORD_ONLY for split in splits)
