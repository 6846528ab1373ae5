"""A curvature matrix, a way of products and an eigensolver of one's own, each from outside the package.

Every class here uses public names only, and each answer is held against a dense float64 matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessian import (
    CurvatureMatrix,
    EigenProblem,
    EigenSolution,
    EigenSolver,
    ForwardReverse,
    Hessian,
    HessianError,
    Linearized,
    LocalLoss,
    Loss,
    ProductMode,
    Retained,
    ReverseReverse,
    extreme_eigenpairs,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shifted(CurvatureMatrix):
    """H + c I."""

    c: float
    name = "shifted"
    decay = 1.0

    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        return self._shift(Hessian().product(loss, vector), vector)

    def linear_map(self, loss: LocalLoss) -> Callable[[Tensors], Tensors]:
        multiply = Hessian().linear_map(loss)
        return lambda vector: self._shift(multiply(vector), vector)

    def _shift(self, product: Tensors, vector: Tensors) -> Tensors:
        return {name: part + self.c * vector[name] for name, part in product.items()}


class GradientCovariance(CurvatureMatrix):
    """(1/N) sum_i g_i g_i^T, uncentred: the empirical Fisher matrix. It has no second derivative."""

    name = "gradient_covariance"

    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        x, y = loss.batch
        total = {name: torch.zeros_like(part) for name, part in vector.items()}
        for i in range(len(x)):
            one = replace(loss, batch=(x[i : i + 1], y[i : i + 1]))
            gradient: Tensors = torch.func.grad(one.at)(dict(loss.parameters))
            along = sum((gradient[name] * part).sum() for name, part in vector.items())
            total = {name: part + along / len(x) * gradient[name] for name, part in total.items()}
        return total


@dataclass
class Scaled(GradientCovariance):
    by: int


class Dense(ProductMode):
    """The matrix of each batch written out, column by column, and kept."""

    name = "dense"
    keeps = True

    def __init__(self) -> None:
        self.made = 0

    def prepare(self, matrix: CurvatureMatrix) -> Callable[[LocalLoss], Callable[[Tensors], Tensors]]:
        return lambda loss: self._written_out(matrix, loss)

    def _written_out(self, matrix: CurvatureMatrix, loss: LocalLoss) -> Callable[[Tensors], Tensors]:
        self.made += 1
        units = torch.eye(sum(p.numel() for p in loss.parameters.values()), dtype=torch.float64)
        written = torch.stack([flat(matrix.product(loss, shaped(u, loss.parameters))) for u in units], 1)
        return lambda vector: shaped(written @ flat(vector), loss.parameters)

    def measured(self, prepared: Any, loss: LocalLoss) -> tuple[Any, int]:
        return prepared(loss), 8 * sum(p.numel() for p in loss.parameters.values()) ** 2


def flat(parts: Any) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts.values()])


def shaped(vector: torch.Tensor, like: Any) -> Tensors:
    rows = vector.split([part.numel() for part in like.values()])
    return {name: row.view(part.shape) for (name, part), row in zip(like.items(), rows, strict=True)}


@dataclass(frozen=True)
class BlockKrylov(EigenSolver):
    """Rayleigh-Ritz in the span of V, A V, A^2 V, ... for a random block V, a row for each pair."""

    powers: int
    name = "block krylov"

    def solve(self, problem: EigenProblem) -> EigenSolution:
        shape = problem.goal.wanted, problem.size
        block = torch.randn(shape, generator=problem.generator(), dtype=problem.operator.vector_dtype)
        basis = torch.linalg.qr(block.T)[0].T
        for _ in range(self.powers):
            new = problem.multiply(basis[-len(block) :])
            basis = torch.linalg.qr(torch.cat([basis, new]).T)[0].T
        return problem.measured(basis)


def model_and_data() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        return model, torch.randn(11, 3, dtype=torch.float64), torch.arange(11) % 3


def small_loss(**options: Any) -> Loss:
    model, x, y = model_and_data()
    return Loss(model, F.cross_entropy, [(x[:7], y[:7]), (x[7:], y[7:])], **options)


@pytest.fixture
def loss() -> Loss:
    return small_loss()


def by_autograd(examples: slice) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (n,) and Hessian (n, n) of the mean loss of some examples, as functions of one vector."""
    model, x, y = model_and_data()
    names = dict(model.named_parameters())

    def value(theta: torch.Tensor) -> torch.Tensor:
        outputs = torch.func.functional_call(model, shaped(theta, names), (x[examples],))
        return F.cross_entropy(outputs, y[examples])

    theta = flat({name: p.detach() for name, p in names.items()})
    gradient = torch.autograd.functional.jacobian(value, theta)
    return gradient.numpy(), torch.autograd.functional.hessian(value, theta).numpy()


HESSIAN = by_autograd(slice(None))[1]
GRADIENTS = np.stack([by_autograd(slice(i, i + 1))[0] for i in range(11)])


def test_a_matrix_of_ones_own_in_every_mode(loss: Loss) -> None:
    expected, eye = HESSIAN + 0.7 * np.eye(loss.size), np.eye(loss.size)
    for mode in (None, Linearized(), Retained(), ReverseReverse(), ForwardReverse()):
        operator = loss.operator(Shifted(0.7), mode)
        np.testing.assert_allclose(operator @ eye, expected, atol=1e-13)
    assert loss.operator(Shifted(0.7)).choice.mode == Linearized()
    other = loss.operator(Shifted(-2.0)) @ eye  # another value is another matrix
    np.testing.assert_allclose(other, expected - 2.7 * eye, atol=1e-13)
    decayed = small_loss(weight_decay=0.1).operator(Shifted(0.7)) @ eye
    np.testing.assert_allclose(decayed, expected + 0.1 * eye, atol=1e-13)
    spectrum = extreme_eigenpairs(loss.operator(Shifted(0.7)), 2, 2, tol=1e-8)
    values = np.linalg.eigvalsh(expected)
    np.testing.assert_allclose([pair.value for pair in spectrum.pairs], values[[-1, -2, 1, 0]], atol=1e-8)


def test_a_matrix_that_is_not_a_second_derivative() -> None:
    loss = small_loss(weight_decay=0.1)  # no part of this matrix
    expected = GRADIENTS.T @ GRADIENTS / len(GRADIENTS)
    matrix = GradientCovariance()
    for mode in (None, "linearized", "forward_reverse"):
        np.testing.assert_allclose(loss.operator(matrix, mode) @ np.eye(loss.size), expected, atol=1e-14)
    choice = loss.operator(matrix).choice
    assert choice.mode == Linearized()
    assert "gradient_covariance has no products by reverse over reverse" in choice.refused["retained"]
    with pytest.raises(HessianError, match="mode 'reverse_reverse' does not work for this loss"):
        loss.operator(matrix, ReverseReverse())


def test_a_mode_of_ones_own(loss: Loss) -> None:
    mode = Dense()
    operator = loss.hessian(mode)
    vectors = np.random.default_rng(0).standard_normal((loss.size, 3))
    for _ in range(2):
        np.testing.assert_allclose(operator @ vectors, HESSIAN @ vectors, atol=1e-13)
    assert mode.made == 1 + 2  # a trial, and one for each batch: they are kept
    assert (operator.mode, operator.choice.mode) == ("dense", mode)
    assert operator.choice.bytes == {"dense": 2 * 8 * loss.size**2}
    assert extreme_eigenpairs(operator).mode == "dense"
    both = loss.operator(Shifted(3.0), mode) @ vectors  # a matrix and a mode that have never met
    np.testing.assert_allclose(both, HESSIAN @ vectors + 3 * vectors, atol=1e-13)


def test_a_mode_that_fails_does_not_run_as_another(loss: Loss) -> None:
    class Broken(Dense):
        name = "broken"

        def prepare(self, matrix: CurvatureMatrix) -> Any:
            raise RuntimeError("not today")

    with pytest.raises(HessianError, match=r"mode 'broken' does not work .*RuntimeError: not today"):
        loss.hessian(Broken())


def test_a_solver_of_ones_own(loss: Loss) -> None:
    hessian, exact = loss.hessian(), np.linalg.eigvalsh(HESSIAN)
    spectrum = extreme_eigenpairs(hessian, 3, 2, tol=1e-8, solver=BlockKrylov(4))
    assert spectrum.products == hessian.products == 4 * 5 + 25
    assert (spectrum.method, spectrum.residuals) == ("block krylov", "measured")
    assert spectrum.mode == hessian.mode
    for pair in spectrum.pairs:
        residual = float(np.linalg.norm(hessian @ pair.vector - pair.value * pair.vector))
        assert residual == pytest.approx(pair.residual, rel=1e-6, abs=1e-14)
        assert np.abs(exact - pair.value).min() <= pair.residual + 1e-14
    whole = extreme_eigenpairs(hessian, 3, 2, tol=1e-8, solver=BlockKrylov(6))  # all 31 dimensions
    np.testing.assert_allclose([pair.value for pair in whole.pairs], exact[[-1, -2, -3, 1, 0]], atol=1e-13)
    assert whole.converged
    assert not extreme_eigenpairs(hessian, 3, 2, tol=1e-8, solver=BlockKrylov(1)).converged


def test_a_solver_of_ones_own_on_a_plain_matrix() -> None:
    values = np.r_[-5.0, np.linspace(-1, 1, 300), 3, 4]
    spectrum = extreme_eigenpairs(np.diag(values), 2, 1, tol=1e-6, solver=BlockKrylov(20))
    np.testing.assert_allclose([pair.value for pair in spectrum.pairs], [4, 3, -5], atol=1e-9)
    assert spectrum.converged
    with pytest.raises(HessianError, match="not symmetric"):
        extreme_eigenpairs(np.triu(np.ones((9, 9))), 1, 1, solver=BlockKrylov(2))


def test_what_is_no_member_is_refused(loss: Loss) -> None:
    for matrix in ("hessian", Hessian, None):
        with pytest.raises(HessianError, match=r"is not a curvature matrix; give Hessian\(\)"):
            loss.operator(matrix)  # type: ignore[arg-type]
    with pytest.raises(HessianError, match=r"Scaled\(by=2\) can change; make its class a frozen dataclass"):
        loss.operator(Scaled(2))
    for mode in ("dense", Retained, 3):
        with pytest.raises(HessianError, match="here; there are linearized, retained, reverse_reverse"):
            loss.hessian(mode)  # type: ignore[arg-type]
    with pytest.raises(HessianError, match=r"is not a solver; give Lanczos\(\), Eigsh\(\)"):
        extreme_eigenpairs(loss.hessian(), solver=BlockKrylov)  # type: ignore[arg-type]
