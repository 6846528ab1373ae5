"""The duality gap bounds the distance to the optimum at any point, and is tight where it should be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.fit.certificate import duality_gap
from probes.fit.features import Rows, Scaling
from probes.fit.softmax import Softmax

from .fitting import clusters, objective, optimum, standardised


def gap_at(theta, x, y, l2):
    z, frequency = standardised(x), np.bincount(y) / len(y)
    value, gradient, log_p = objective(theta, z, y, l2)
    gradient[:, :-1] -= l2 * theta[:, :-1]
    loss = -log_p[np.arange(len(y)), y].mean()
    return value, duality_gap(
        loss, *map(torch.from_numpy, (gradient, theta)), l2, torch.from_numpy(frequency)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    l2=st.sampled_from([10.0, 1e-1, 1e-3]),
    size=st.floats(0, 3),
    bias=st.floats(-8, 8),
    classes=st.integers(2, 5),
)
def test_the_gap_bounds_the_distance_at_any_point(seed, l2, size, bias, classes):
    x, y = clusters(60, 5, classes, seed)
    rng = np.random.default_rng(seed)
    theta = size * rng.standard_normal((classes, 6))
    theta[0, -1] += bias
    value, gap = gap_at(theta, x, y, l2)
    least, _ = optimum(x, y, l2)
    assert gap >= value - least - 1e-9


@pytest.mark.parametrize("l2", [1.0, 1e-2])
def test_with_an_optimal_bias_it_is_the_bound_of_strong_convexity(l2):
    x, y = clusters(80, 3, 3)
    theta = np.zeros((3, 4))
    theta[:, -1] = np.log(np.bincount(y) / len(y))  # optimal where W = 0
    _, gradient, _ = objective(theta, standardised(x), y, l2)
    assert gap_at(theta, x, y, l2)[1] == pytest.approx((gradient[:, :-1] ** 2).sum() / (2 * l2), rel=1e-9)


def test_at_the_optimum_nothing_is_left():
    x, y = clusters(80, 3, 3, noise=3)
    z = standardised(x)
    _, log_p = optimum(x, y, 0.1)
    residual = np.exp(log_p)
    residual[np.arange(len(y)), y] -= 1
    weight = -residual.T @ z / len(y) / 0.1  # where the gradient vanishes
    u = log_p - z @ weight.T
    theta = np.c_[weight, (u - u.mean(1, keepdims=True)).mean(0)]
    assert 0 <= gap_at(theta, x, y, 0.1)[1] < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_gives_objective_gradient_gap_and_bias_hessian(dtype):
    x, y = clusters(5000, 7, 3)
    rows = Rows(x, Scaling.of(x, "x"), 0, torch.device("cpu"))
    problem = Softmax(rows, torch.from_numpy(y), 3)
    theta = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 8)))
    found = problem.evaluate(theta, 0.1, dtype, bias_hessian=True)
    value, gradient, log_p = objective(theta.numpy(), standardised(x), y, 0.1)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert found.value == pytest.approx(value, rel=tolerance)
    np.testing.assert_allclose(found.gradient, gradient, rtol=0, atol=tolerance)
    p = np.exp(log_p)
    hessian = np.diag(p.mean(0)) - p.T @ p / len(p)
    np.testing.assert_allclose(found.bias_hessian, hessian, rtol=0, atol=tolerance)
    assert found.gap == pytest.approx(gap_at(theta.numpy(), x, y, 0.1)[1], rel=1e-4)
