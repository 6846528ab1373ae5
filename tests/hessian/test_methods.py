"""How products are computed: chosen by evidence that does not depend on the clock, and right in every way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hessian import MODES, HessianError, Linearized, Loss, ProductMode, Retained, ReverseReverse
from hessian.empirical_risk.evaluating import _PlainWeightNorm

from .cases import CASES, Case, dense


def operations(action: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products and convolutions meanwhile."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=lambda case: case.name)
def test_the_order_of_preference_is_that_of_operations(case: Case) -> None:
    loss = case.loss()
    costs = []
    for mode in MODES:
        operator = loss.hessian(mode)
        vector = torch.ones(1, loss.size, dtype=torch.float64)
        operator.multiply(vector)  # what is kept is made at the first
        costs.append(operations(lambda op=operator, v=vector: op.multiply(v)))
    linearized, retained, reverse, forward = costs
    assert linearized <= retained < reverse <= 1.05 * forward
    assert loss.hessian().choice.mode == Linearized()


def test_no_zeros_are_made_and_added() -> None:
    made = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
        ) -> Any:
            made.append(function is torch.ops.aten.zeros_like.default)
            return function(*arguments, **(keywords or {}))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    data = [(torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 3)]
    loss = Loss(model, F.cross_entropy, data)
    operators = [loss.hessian("linearized"), loss.hessian("reverse_reverse")]
    vector = torch.randn(1, loss.size, dtype=torch.float64)
    one, other = (operator.multiply(vector) for operator in operators)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with Seen():
        operators[0].multiply(vector)
    assert made
    assert not any(made)


def test_the_same_mode_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that makes the first way the slowest, and one that makes it the fastest."""
    modes = []
    for step in (1.0, -1.0):
        now = [0.0]

        def clock(now: list[float] = now, step: float = step) -> float:
            now[0] += step
            return now[0] ** 3

        monkeypatch.setattr(time, "perf_counter", clock)
        monkeypatch.setattr(time, "monotonic", clock)
        modes.append([case.loss().hessian().choice for case in CASES[:3]])
    assert modes[0] == modes[1]


def test_the_choice_looks_at_a_few_examples_only() -> None:
    """On 3,000 of them it costs less than a product."""
    loss = CASES[0].loss_of(CASES[0].batches((3000,)))
    costs = [operations(loss.hessian)]
    operator = loss.hessian()
    _ = operator @ np.ones(loss.size)
    costs.append(operations(lambda: operator @ np.ones(loss.size)))
    assert costs[0] < costs[1]


def test_the_choice_says_why() -> None:
    loss = CASES[2].loss()
    choice = loss.hessian().choice
    assert choice.mode == Linearized()
    assert choice.refused == {}
    assert choice.difference is not None
    assert choice.difference < 1e-12
    assert set(choice.bytes) == {"linearized", "retained"}


def test_bytes_are_those_of_all_the_data() -> None:
    case = CASES[2]
    loss = case.loss_of(case.batches((6,) * 5))
    operator = loss.hessian("linearized")
    _ = operator @ np.ones(loss.size)
    kept = sum(linear_map.bytes for linear_map, _ in operator._kept)
    few = case.loss_of(case.batches((6,))).hessian().choice.bytes
    assert loss.hessian().choice.bytes == {"linearized": kept, "retained": 5 * few["retained"]}


def test_what_is_kept_may_fill_the_memory_but_no_more() -> None:
    case = CASES[2]
    sizes = case.loss().hessian().choice.bytes
    assert sizes["retained"] < sizes["linearized"]
    modes = []
    for limit in (sizes["linearized"], sizes["linearized"] - 1, sizes["retained"], sizes["retained"] - 1):
        loss = case.loss(memory_limit=limit)
        loss._passes._piece = 2**62  # the batches as they are
        modes.append(loss.hessian().choice.mode)
    assert modes == [Linearized(), Retained(), Retained(), ReverseReverse()]


def test_retained_is_next_where_linearizing_is_impossible() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(x)) if x[0].sum() < 1e9 else x

    loss = Case("branch", Branch, (4,)).loss()
    choice = loss.hessian().choice
    assert choice.mode == Retained()
    assert list(choice.refused) == ["linearized"]
    assert choice.difference is None


class TwoFaced(nn.Module):
    """Something else where torch.func differentiates it forward, as a wrong derivative would be."""

    def __init__(self, factor: float):
        super().__init__()
        self.layer, self.head, self.factor = nn.Linear(4, 5), nn.Linear(5, 3), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        return self.head(torch.tanh(self.layer(x)) * (self.factor if transformed else 1))


def test_a_forward_derivative_that_disagrees_with_two_reverse_ones_is_not_used() -> None:
    loss = Case("two-faced", lambda: TwoFaced(1.001), (4,)).loss()
    model = CASES[0].model()  # the same network
    with torch.no_grad():
        for mine, its in zip(model.parameters(), loss.objective.model.parameters(), strict=True):
            mine.copy_(its)
    operator = loss.hessian()
    assert operator.choice.mode == Retained()
    assert "differs from reverse over reverse by" in operator.choice.refused["linearized"]
    assert operator.choice.difference == pytest.approx(2e-3, rel=0.9)
    np.testing.assert_allclose(operator @ np.eye(loss.size), dense(CASES[0], model)[2], atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "factor", "mode"),
    [
        (torch.float64, 1 + 1e-9, Linearized()),
        (torch.float64, 1 + 1e-6, Retained()),
        (torch.float32, 1 + 1e-4, Linearized()),
        (torch.float32, 1 + 1e-2, Retained()),
    ],
)
def test_both_ways_may_differ_by_rounding(dtype: torch.dtype, factor: float, mode: ProductMode) -> None:
    case = Case("two-faced", lambda: TwoFaced(factor), (4,))
    loss = Loss(case.model(dtype), case.loss_fn, case.batches(dtype=dtype))
    assert loss.hessian().choice.mode == mode


class NormsConstant(torch.autograd.Function):
    """x |x|^2 whose derivative is right, and whose second derivative takes |x|^2 for a constant."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * (x @ x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        g = gradients[0]
        return g * (x @ x).detach() + 2 * x * (g @ x)


def test_a_second_derivative_that_is_not_symmetric_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(1.0, 5.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ NormsConstant.apply(self.weight)

    case = Case(
        "scaled", Scaled, (4,), lambda z, y: (z - y).square().mean(), lambda n, g: torch.randn(n, generator=g)
    )
    with pytest.raises(HessianError, match="products by reverse over reverse are not symmetric, by"):
        case.loss().hessian()


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.layer(x)))


def numbers(n: int, g: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 2, generator=g)


NO_FORWARD = [
    Case("mse", CASES[1].build, (4,), F.mse_loss, numbers),
    Case("huber", CASES[1].build, (4,), F.huber_loss, numbers),
    Case("weight norm", Normed, (4,), F.mse_loss, numbers),
]


@pytest.mark.parametrize("limit", [None, 500])
@pytest.mark.parametrize("case", NO_FORWARD, ids=lambda case: case.name)
def test_gauss_newton_where_torch_lacks_a_forward_derivative(case: Case, limit: int | None) -> None:
    """Against J^T (d2 loss / d outputs2) J written out; also where nothing can be kept."""
    model = case.model()
    x, y = (torch.cat(parts) for parts in zip(*case.batches((6, 6)), strict=True))
    loss = Loss(model, case.loss_fn, (x, y), memory_limit=limit)
    names = dict(model.named_parameters())

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([p.numel() for p in names.values()])
        weights = {k: part.view(p.shape) for (k, p), part in zip(names.items(), parts, strict=True)}
        return torch.func.functional_call(model, weights, (x,))

    theta = torch.cat([p.detach().reshape(-1) for p in names.values()])
    jacobian = torch.autograd.functional.jacobian(outputs, theta).flatten(0, 1)
    z = outputs(theta).detach()
    middle = torch.autograd.functional.hessian(lambda z: case.loss_fn(z, y), z).reshape(z.numel(), -1)
    expected = (jacobian.T @ middle @ jacobian).numpy()
    with _PlainWeightNorm():  # checked by finite differences below
        whole = torch.autograd.functional.hessian(lambda v: case.loss_fn(outputs(v), y), theta).numpy()
    gauss_newton, residual = loss.gauss_newton(), loss.functional_hessian()
    if limit is not None:
        assert gauss_newton.choice.mode == ReverseReverse()
    eye = np.eye(loss.size)
    np.testing.assert_allclose(gauss_newton @ eye, expected, atol=1e-12)
    np.testing.assert_allclose(residual @ eye, whole - expected, atol=1e-12)
    np.testing.assert_allclose(loss.hessian() @ eye, whole, atol=1e-12)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_gauss_newton_and_functional_hessian_in_every_mode(mode: ProductMode) -> None:
    case = CASES[0]
    loss = case.loss_of(case.batches((7, 7)))
    vectors = np.random.default_rng(0).standard_normal((loss.size, 2))
    whole = loss.hessian(mode) @ vectors
    gauss_newton = loss.gauss_newton(mode) @ vectors
    residual = loss.functional_hessian(mode) @ vectors
    np.testing.assert_allclose(gauss_newton, loss.gauss_newton() @ vectors, atol=1e-13)
    np.testing.assert_allclose(gauss_newton + residual, whole, atol=1e-13)
    assert np.abs(residual).max() > 1e-3


def test_a_mode_that_is_asked_for_is_taken_and_a_wrong_one_named() -> None:
    loss = CASES[1].loss()
    for mode in MODES[:3]:
        assert loss.hessian(mode).choice.mode == loss.hessian(mode.name).choice.mode == mode
        assert loss.hessian(mode).mode == mode.name
    with pytest.raises(
        HessianError, match=r"mode 'forward_reverse' does not work for this loss \(RuntimeError"
    ):
        loss.hessian("forward_reverse")
    with pytest.raises(HessianError, match="no mode 'fastest' here; there are linearized, retained"):
        loss.hessian("fastest")


@pytest.mark.parametrize("old", [False, True])
def test_weight_norm_has_the_hessian_that_finite_differences_see(old: bool) -> None:
    """Torch's own second derivative of the fused operation is wrong, and not even symmetric."""
    case = NO_FORWARD[2]
    model = case.model()
    if old:
        model.layer = nn.Linear(4, 5).double()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.nn.utils.weight_norm(model.layer)
    loss = Loss(model, F.mse_loss, case.batches())
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    step, columns = 1e-5, []
    for i in range(loss.size):
        ends = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[i] += sign * step
            torch.nn.utils.vector_to_parameters(moved, model.parameters())
            ends.append(loss.gradient())
        columns.append((ends[0] - ends[1]) / (2 * step))
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    np.testing.assert_allclose(loss.hessian() @ np.eye(loss.size), np.array(columns), atol=1e-8)
    assert loss.hessian().choice.mode == Linearized()
