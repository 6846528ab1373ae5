"""The convex fit: the optimum of scikit-learn, a certificate that holds, and what chooses the strength."""

import dataclasses

import numpy as np
import pytest
import sklearn.datasets
import torch
from sklearn.linear_model import LogisticRegression

from analysis import frame
from probes import ArrayFeatures, ProbeError, evaluate_probes, fit_probes
from probes.fit.all_layers import _PATH

from .fitting import clusters, optimum, standardised

DATA = ("load_digits", "load_iris", "load_wine", "load_breast_cancer")


def fit(x, y, l2, **options):
    return fit_probes(ArrayFeatures({"x": x}, y), l2=l2, progress=False, **options)


def near_copies(x):
    """Every feature a second time, with a thousandth of noise."""
    noise = np.random.default_rng(0).standard_normal(x.shape)
    return np.c_[x, x + 1e-3 * x.std(0) * noise].astype(np.float32)


@pytest.mark.parametrize("collinear", [False, True])
@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("name", DATA)
def test_agrees_with_scikit_learn(name, l2, collinear):
    x, y = getattr(sklearn.datasets, name)(return_X_y=True)
    x = near_copies(x) if collinear else x.astype(np.float32)
    found = fit(x, y, l2, tol=1e-9)
    z = standardised(x)
    # Of two classes scikit-learn fits the difference of the two weights, whose square is twice the sum.
    strength = l2 / 2 if y.max() == 1 else l2
    model = LogisticRegression(
        C=1 / (strength * len(y)), solver="newton-cholesky", tol=1e-10, max_iter=1000
    ).fit(z, y)
    p = model.predict_proba(z)
    np.testing.assert_allclose(np.exp(found.classifiers["x"].predict_log_proba(x)), p, atol=1e-4)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    assert found.train["x"].loss == pytest.approx(loss, abs=1e-4)
    assert found.train["x"].error == pytest.approx((p.argmax(1) != y).mean(), abs=1e-9)
    least = loss + strength / 2 * (model.coef_**2).sum()
    assert found.path[0].converged
    assert found.path[0].gap <= 1e-9 * found.path[0].objective
    assert abs(found.path[0].objective - least) <= 1e-6 * least


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("case", [(400, 12, 4, 0, 1.5), (60, 80, 3, 1, 1.0), (300, 5, 2, 2, 0.2)])
def test_the_certificate_bounds_the_true_gap(case, tol):
    x, y = clusters(*case)
    for l2 in (1.0, 1e-2, 1e-4):
        point = fit(x, y, l2, tol=tol).path[0]
        least, _ = optimum(x, y, l2)
        assert point.objective - least <= point.gap + 1e-10
        assert point.converged
        assert 0 <= point.gap <= tol * point.objective


def test_an_unfinished_fit_says_so():
    x, y = clusters()
    found = fit(x, y, 1e-4, max_iter=2)
    point = found.path[0]
    least, _ = optimum(x, y, 1e-4)
    assert not point.converged
    assert found.train["x"].converged is False
    assert point.gap >= point.objective - least > 1e-6 * least


def test_validation_rows_choose_and_test_rows_do_not():
    x, y = clusters(900, 40, 3, noise=3)
    parts = [ArrayFeatures({"x": x[i::3]}, y[i::3]) for i in range(3)]
    found = fit_probes(*parts, progress=False)
    assert [point.l2 for point in found.path] == list(_PATH[: len(found.path)])
    best = min(found.path, key=lambda point: point.valid_loss)
    for result in (found.train, found.valid, found.test, evaluate_probes(found, parts[2])):
        reading = result["x"]
        assert (reading.l2, reading.gap, reading.objective) == (best.l2, best.gap, best.objective)
        assert reading.converged is True
    assert found.valid["x"].loss == pytest.approx(best.valid_loss)
    losses = [point.valid_loss for point in found.path]
    assert losses.index(min(losses)) == len(losses) - 3 < len(_PATH) - 3  # two more, and no further
    other = fit_probes(parts[0], parts[1], ArrayFeatures({"x": x[2::3] * 9}, y[2::3]), progress=False)
    assert other.path == found.path
    assert other.test != found.test
    alone = fit(x[0::3], y[0::3], best.l2)
    assert alone.path[0].objective == pytest.approx(best.objective, rel=2e-6)


def test_early_stopping_keeps_the_point_of_least_validation_loss():
    x, y = clusters(150, 100, 4, noise=10)
    train, valid = ArrayFeatures({"x": x[:100]}, y[:100]), ArrayFeatures({"x": x[100:]}, y[100:])
    stopped = fit_probes(train, valid, l2=1e-4, early_stopping=True, progress=False)
    to_the_end = fit_probes(train, valid, l2=1e-4, progress=False)
    (point,) = stopped.path
    assert point.valid_loss is not None
    assert point.valid_loss == pytest.approx(stopped.valid["x"].loss)
    assert point.valid_loss < to_the_end.valid["x"].loss - 0.1, "nothing was there to be stopped"
    assert point.valid_loss < np.log(4)
    assert not point.converged
    true_gap = point.objective - to_the_end.path[0].objective
    assert 0 < true_gap <= point.gap * (1 + 1e-6)
    assert stopped.train["x"].gap == point.gap
    with pytest.raises(ProbeError, match="stopping early needs rows that were not fitted"):
        fit_probes(train, early_stopping=True)


def test_scores_are_means_with_standard_errors():
    x, y = clusters(500, 10, 8, noise=3)
    found = fit(x, y, 1e-2)
    log_p = found.classifiers["x"].predict_log_proba(x)
    reading, rows = found.train["x"], np.arange(len(y))
    rank = (log_p > log_p[rows, y][:, None]).sum(1)
    for values, mean, error in (
        (-log_p[rows, y], reading.loss, reading.loss_se),
        (rank >= 1, reading.error, reading.error_se),
        (rank >= 5, reading.top5_error, reading.top5_error_se),
    ):
        assert mean == pytest.approx(values.mean(), rel=1e-4)
        assert error == pytest.approx(values.std() / len(y) ** 0.5, rel=1e-4)
    assert (reading.lr, reading.n, reading.features) == (None, 500, 10)
    assert found.train.references[0].majority_error == pytest.approx(1 - np.bincount(y).max() / 500)
    assert frame(found.train).loc[0, "l2"] == 1e-2


def test_fitted_probes_on_other_rows():
    x, y = clusters(300, 6, 7)
    train, test = ArrayFeatures({"x": x[:200]}, y[:200]), ArrayFeatures({"x": x[200:]}, y[200:])
    fitted = fit_probes(train, None, test, l2=1e-2, progress=False)
    assert evaluate_probes(fitted, test) == fitted.test
    assert evaluate_probes(fitted, train, split="train") == fitted.train
    moved = ArrayFeatures({"x": x[200:] + 1}, y[200:])
    log_p = fitted.classifiers["x"].predict_log_proba(x[200:] + 1)
    found = evaluate_probes(fitted, moved, split="moved")
    assert found.split == "moved"
    assert found["x"].loss == pytest.approx(-log_p[np.arange(100), y[200:]].mean(), rel=1e-5)
    assert found["x"].error == pytest.approx((log_p.argmax(1) != y[200:]).mean())
    assert found["x"].gap == fitted.train["x"].gap


def test_rows_that_fitted_probes_cannot_be_measured_on():
    x, y = clusters(60, 4, 3)
    fitted = fit(x[y < 2], y[y < 2], 1e-2, num_classes=3)
    for features, labels, message in (
        ({"z": x}, y, "no features of the fitted layer 'x'"),
        ({"x": x[:, :3]}, y % 2, "has 3 features in test and was fitted with 4"),
        ({"x": x}, y, "rows of class 2, which was not fitted"),
        ({"x": x}, y + 5, "rows of class 5, which was not fitted"),
    ):
        with pytest.raises(ProbeError, match=message):
            evaluate_probes(fitted, ArrayFeatures(features, labels))


def test_half_precision_integers_and_constant_features():
    x, y = clusters(noise=1)
    x = np.c_[x, np.full(len(x), 0.1), 1e4 + x[:, 0]]
    for stored in (x.astype(np.float16), x.astype(np.float32), (100 * x).astype(np.int32)):
        point = fit(stored, y, 1e-3, tol=1e-8)
        least, _ = optimum(stored, y, 1e-3)
        assert point.path[0].objective == pytest.approx(least, rel=1e-7)
    assert point.classifiers["x"].scale[12] == 1


def test_a_class_without_training_rows_has_probability_zero():
    x, y = clusters(classes=3)
    found = fit(x, 2 * y, 1e-2, num_classes=6)
    p = np.exp(found.classifiers["x"].predict_log_proba(x))
    assert p.shape == (400, 6)
    assert not p[:, 1::2].any()
    same = fit(x, y, 1e-2)
    np.testing.assert_allclose(p[:, ::2], np.exp(same.classifiers["x"].predict_log_proba(x)), atol=1e-9)
    assert found.train["x"].loss == pytest.approx(same.train["x"].loss)


def test_more_features_than_rows_and_than_a_gram_matrix_holds():
    x, y = clusters(80, 300, 3, noise=4)
    point = fit(x, y, 1e-3, memory=2 * 28 * 64**2, tol=1e-8).path[0]  # in blocks of at most 64 features
    least, _ = optimum(x, y, 1e-3)
    assert point.converged
    assert point.objective == pytest.approx(least, rel=1e-7)


def test_a_start_saves_steps_and_changes_nothing():
    x, y = clusters(600, 30, 4, noise=3)
    first = fit(x, y, 1e-3, tol=1e-9)
    moved = (1.01 * x + 0.1).astype(np.float32)
    cold, warm = fit(moved, y, 1e-3, tol=1e-9), fit(moved, y, 1e-3, tol=1e-9, start=first)
    assert warm.path[0].iterations < cold.path[0].iterations / 2
    assert warm.path[0].objective == pytest.approx(cold.path[0].objective, rel=1e-8)
    with pytest.raises(ProbeError, match="start has 4 classes and 30 features for layer 'x', not 4 and 20"):
        fit(x[:, :20], y, 1e-3, start=first)


def test_layers_keep_their_order_and_results_are_frozen():
    x, y = clusters()
    table = ArrayFeatures({"b": x, "a": x[:, :3]}, y, {"b": "avg:1"})
    found = fit_probes(table, l2=0.1, progress=False)
    assert [r.layer for r in found.train.readings] == ["b", "a"] == list(found.classifiers)
    assert found.train["b"].reduction == "avg:1"
    assert found.train["a"].loss > found.train["b"].loss
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.path = ()


def test_gradients_may_be_off_or_on_around_it():
    x, y = clusters(50, 3, 2)
    with torch.no_grad():
        fit(x, y, 0.1)
    assert torch.is_grad_enabled()


X, Y = clusters(60, 4, 3)
BROKEN = X.copy()
BROKEN[7, 2] = np.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(BROKEN, Y, 0.1), "features of layer 'x' hold NaN or infinite"),
        (lambda: fit(X, Y, 0.1, num_classes=2), "label 2, which is out of range: with num_classes=2"),
        (lambda: fit(X, Y - 1, 0.1), "train has label -1"),
        (lambda: fit(X, np.zeros(60, int), 0.1), "all rows of train have label 0"),
        (lambda: fit(X, Y, 0.0), "l2=0.0, but it has to be a finite number above 0"),
        (lambda: fit(X, Y, 0.1, tol=0), "tol=0"),
        (lambda: fit(X, Y, None), "choosing among 9 strengths .* give valid="),
        (lambda: fit(X, Y, (0.1, 1)), "choosing among 2 strengths"),
        (lambda: fit(X, Y[:50], 0.1), r"layer 'x' have shape \(60, 4\); with 50 labels"),
        (lambda: fit(X, Y / 2, 0.1), "labels are float64"),
        (lambda: fit(X, Y, 0.1, valid=ArrayFeatures({"z": X}, Y)), "valid has no features of layer 'x'"),
        (lambda: fit(X, Y, 0.1, test=ArrayFeatures({"x": X[:, :3]}, Y)), "3 features in test and 4 in train"),
        (lambda: fit(X, Y, 0.1, valid=ArrayFeatures({"x": X}, Y + 1)), "valid has label 3"),
        (lambda: fit(X, Y * 2, 0.1, valid=ArrayFeatures({"x": X}, Y)), "valid has rows of class 1, which"),
        (lambda: fit(X, Y, 0.1).classifiers["x"].predict_log_proba(X[:, :2]), "matrices of 4 columns"),
    ],
)
def test_mistakes_get_one_sentence(call, message):
    with pytest.raises(ProbeError, match=message):
        call()
