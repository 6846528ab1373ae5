"""Softmax regression by means of SciPy alone, in float64: what a convex fit must agree with."""

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp


def standardised(x):
    x = np.asarray(x, dtype=np.float64)
    scale = x.std(0)
    return (x - x.mean(0)) / np.where(scale > 1e-9, scale, 1)


def objective(theta, z, y, l2):
    """F and its gradient, at theta = [W b] of shape (C, size + 1)."""
    u = z @ theta[:, :-1].T + theta[:, -1]
    log_p = u - logsumexp(u, axis=1, keepdims=True)
    rows = np.arange(len(y))
    value = -log_p[rows, y].mean() + l2 / 2 * (theta[:, :-1] ** 2).sum()
    residual = np.exp(log_p)
    residual[rows, y] -= 1
    gradient = np.c_[residual.T @ z / len(y) + l2 * theta[:, :-1], residual.mean(0)]
    return value, gradient, log_p


def optimum(x, y, l2, start=None):
    """The least F that L-BFGS-B finds, and the log-probabilities there."""
    z, shape = standardised(x), (y.max() + 1, np.shape(x)[1] + 1)

    def f(v):
        value, gradient, _ = objective(v.reshape(shape), z, y, l2)
        return value, gradient.ravel()

    v = np.zeros(shape).ravel() if start is None else start.ravel()
    options = {"maxiter": 50_000, "maxfun": 100_000, "ftol": 0, "gtol": 1e-10, "maxcor": 30}
    v = minimize(f, v, jac=True, method="L-BFGS-B", options=options).x
    value, _, log_p = objective(v.reshape(shape), z, y, l2)
    return value, log_p


def clusters(n=400, size=12, classes=4, seed=0, noise=1.5):
    """Features around a centre for each class, float32, and labels."""
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    y[:classes] = np.arange(classes)
    x = rng.standard_normal((classes, size))[y] + noise * rng.standard_normal((n, size))
    return x.astype(np.float32), y
