"""Steps along negative curvature: off a saddle, and nothing else of the base optimizer changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessian import EigenTracker, HessianError
from hessian.experimental.negative_curvature import NegativeCurvature


class Saddle(nn.Module):
    """x^2 / 2 - c y^2 / 2 + y^4 / 4, and ten more directions of curvature 1; the saddle is at zero."""

    def __init__(self, curvature: float = -0.05):
        super().__init__()
        self.curvature = curvature
        self.theta = nn.Parameter(torch.full((12,), 0.01))

    def forward(self) -> torch.Tensor:
        x, y = self.theta[:11], self.theta[11]
        return x.square().sum() / 2 + self.curvature * y.square() / 2 + y**4 / 4


def saddle_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model()
    return value


BATCH = torch.zeros(4, 1)


def leave(model: Saddle, lr: float, steps: int = 60, every: int = 1) -> NegativeCurvature:
    tracker = EigenTracker(model, batch_loss=saddle_loss, every=1, products=12)
    optimizer = NegativeCurvature(torch.optim.SGD(model.parameters(), 0.1), tracker, lr=lr, every=every)
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        tracker.step(BATCH)
    return optimizer


def test_a_saddle_is_left_faster_than_by_the_base_alone() -> None:
    alone, helped = Saddle(), Saddle()
    leave(alone, lr=0.0)
    optimizer = leave(helped, lr=0.2)
    minimum = 0.05**0.5
    assert abs(alone.theta[11]) < 0.02
    assert abs(helped.theta[11]) > 0.7 * minimum
    assert helped() < -1e-4
    assert optimizer.steps == 60
    assert 0 < optimizer.curvature_steps < 60


def test_no_step_without_negative_curvature_to_vouch_for() -> None:
    bowl = Saddle(curvature=0.5)
    assert leave(bowl, lr=1.0).curvature_steps == 0
    model = Saddle()
    optimizer = leave(model, lr=1.0, steps=2)
    assert optimizer.curvature_steps == 1  # the first step was before the first estimate
    found = optimizer.tracker.smallest
    assert found is not None
    unsure = type(found)(**{**vars(found), "uncertainty": 1.0})
    optimizer.tracker.smallest = unsure
    before = model.theta.detach().clone()
    model.theta.grad = torch.zeros_like(model.theta)
    optimizer.step()
    assert torch.equal(model.theta, before)


def test_the_step_is_newtons_in_one_dimension_with_the_sign_of_descent() -> None:
    model = Saddle()
    tracker = EigenTracker(model, batch_loss=saddle_loss, every=1, products=12)
    tracker.step(BATCH)
    optimizer = NegativeCurvature(torch.optim.SGD(model.parameters(), 0.0), tracker, lr=0.5)
    model().backward()
    assert model.theta.grad is not None
    g, before = model.theta.grad.clone(), model.theta.detach().clone()
    optimizer.step()
    pair = tracker.smallest
    assert pair is not None
    torch.testing.assert_close(
        model.theta.detach(), before - 0.5 * (g @ pair.vector) / abs(pair.value) * pair.vector
    )
    assert torch.equal(model.theta.grad, g)


@pytest.mark.parametrize(("every", "taken"), [(1, 59), (2, 30), (7, 8), (100, 0)])
def test_every(every: int, taken: int) -> None:
    assert leave(Saddle(), lr=0.0, every=every).curvature_steps == taken


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(torch.tanh(self.hidden(x)))
        return logits


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)


def new(every: int = 1, lr: float = 0.1) -> tuple[Net, NegativeCurvature]:
    torch.manual_seed(0)
    model = Net()
    tracker = EigenTracker(model, F.cross_entropy, every=2, examples=16, held_out=16, products=10)
    base = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return model, NegativeCurvature(base, tracker, lr=lr, every=every)


def train(model: Net, optimizer: NegativeCurvature, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.tracker.step((x, y))


def test_with_learning_rate_zero_it_is_the_base_optimizer_bit_for_bit() -> None:
    model, optimizer = new(lr=0.0)
    train(model, optimizer, range(8))
    torch.manual_seed(0)
    alone = Net()
    base = torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9)
    for step in range(8):
        x, y = batch(step)
        base.zero_grad()
        F.cross_entropy(alone(x), y).backward()
        base.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, optimizer = new()
    train(whole, optimizer, range(10))
    assert optimizer.curvature_steps > 0

    first, half = new()
    train(first, half, range(5))
    torch.save({"model": first.state_dict(), "optimizer": half.state_dict()}, tmp_path / "state.pt")
    second, rest = new()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(state["model"])
    rest.load_state_dict(state["optimizer"])
    train(second, rest, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert (rest.steps, rest.curvature_steps) == (10, optimizer.curvature_steps)


def test_groups_and_state_are_shared_also_after_loading() -> None:
    model, optimizer = new()
    train(model, optimizer, range(2))
    for load in (optimizer.load_state_dict, None):
        if load:
            load(optimizer.state_dict())
        else:
            optimizer.base.load_state_dict(optimizer.base.state_dict())
        assert optimizer.param_groups is optimizer.base.param_groups
        assert optimizer.state is optimizer.base.state
    with pytest.raises(HessianError, match="no state of NegativeCurvature"):
        optimizer.load_state_dict(optimizer.base.state_dict())


@pytest.mark.parametrize("of_base", [True, False])
def test_schedulers_of_either_set_the_base_learning_rate(of_base: bool) -> None:
    model, optimizer = new()
    chosen: Any = optimizer.base if of_base else optimizer
    scheduler = torch.optim.lr_scheduler.StepLR(chosen, step_size=2, gamma=0.5)
    rates = []
    for step in range(4):
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
        rates.append(optimizer.base.param_groups[0]["lr"])
    assert rates == [0.1, 0.05, 0.05, 0.025]


def test_closures_and_zero_grad() -> None:
    model, optimizer = new()
    x, y = batch(0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = F.cross_entropy(model(x), y)
    assert torch.equal(optimizer.step(closure).detach(), before.detach())
    assert model.out.weight.grad is not None
    optimizer.zero_grad()
    assert model.out.weight.grad is None


def test_more_parameters_go_to_the_base() -> None:
    _, optimizer = new()
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert len(optimizer.base.param_groups) == len(optimizer.param_groups) == 2
    extra.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(extra.detach(), torch.full((3,), 0.5))


def test_arguments_that_do_not_fit_say_so() -> None:
    model, optimizer = new()
    base, tracker = optimizer.base, optimizer.tracker
    with pytest.raises(HessianError, match="lr=-1"):
        NegativeCurvature(base, tracker, lr=-1)
    with pytest.raises(HessianError, match="every=0"):
        NegativeCurvature(base, tracker, every=0)
    with pytest.raises(HessianError, match=r"'hidden\.weight', which the base optimizer does not train"):
        NegativeCurvature(torch.optim.SGD(model.out.parameters(), 0.1), tracker)
