"""The running extreme eigenpairs: known answers, and a training run that does not notice."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from hessian import EigenTracker, HessianError, Lanczos, Loss, TrackedPair, extreme_eigenpairs
from hessian.experimental.short_lanczos import short_lanczos

EIGENVALUES = torch.cat([torch.tensor([-2.0, -0.5]), torch.linspace(-0.2, 2.0, 26), torch.tensor([5.0, 9.0])])


class Point(nn.Module):
    """A parameter vector; the batch says what it costs."""

    def __init__(self, size: int = len(EIGENVALUES)):
        super().__init__()
        self.theta = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(5)))


def matrix() -> torch.Tensor:
    """Symmetric, with the eigenvalues above, in random directions."""
    noise = torch.randn(len(EIGENVALUES), len(EIGENVALUES), generator=torch.Generator().manual_seed(1))
    q = torch.linalg.qr(noise)[0]
    return q @ torch.diag(EIGENVALUES) @ q.T


class Quadratic:
    """theta^T A theta / 2, each example with a rank-one disturbance of mean zero."""

    def __init__(self, noise: float = 0.0):
        self.matrix, self.noise = matrix(), noise

    def __call__(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        theta = model.theta
        along = batch @ theta
        disturbance = (along.square().mean() - theta.square().sum()) / 2
        return theta @ self.matrix @ theta / 2 + self.noise * disturbance


def batches(count: int, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, size, len(EIGENVALUES), generator=generator))


def test_exact_on_a_quadratic_with_as_many_products_as_dimensions() -> None:
    tracker = EigenTracker(Point(), batch_loss=Quadratic(), every=4, products=len(EIGENVALUES))
    renewed = [tracker.step(batch) for batch in batches(4)]
    assert renewed == [False, False, False, True]
    values, vectors = torch.linalg.eigh(matrix())
    for pair, i in ((tracker.smallest, 0), (tracker.largest, -1)):
        assert pair is not None
        assert pair.value == pytest.approx(float(values[i]), abs=1e-4)
        assert float((pair.vector @ vectors[:, i]).abs()) == pytest.approx(1, abs=1e-4)
        assert float(pair.vector.norm()) == pytest.approx(1, abs=1e-5)
        assert pair.fitted == pytest.approx(pair.held_out, abs=1e-4)
        assert pair.step == 4
        assert pair.products == tracker.products == 30 + 4


def test_few_products_per_estimate_converge_to_both_ends() -> None:
    tracker = EigenTracker(Point(), batch_loss=Quadratic(), every=1, products=7)
    first = None
    for batch in batches(12):
        tracker.step(batch)
        first = first or tracker.smallest
    assert first is not None
    assert tracker.smallest is not None
    assert tracker.largest is not None
    assert abs(tracker.smallest.value + 2) < abs(first.value + 2)
    assert tracker.smallest.value == pytest.approx(-2, rel=1e-2)
    assert tracker.largest.value == pytest.approx(9, rel=1e-2)


def test_middle_of_fitted_and_held_out_is_less_biased_than_either() -> None:
    tracker = EigenTracker(Point(), batch_loss=Quadratic(2.0), every=1, products=12, examples=80, held_out=80)
    pairs = []
    for batch in batches(20, size=160):
        if tracker.step(batch):
            pairs.append((tracker.smallest, tracker.largest))
    for end, exact in ((0, -2.0), (1, 9.0)):
        found = [pair[end] for pair in pairs]
        outward = sum(p.fitted for p in found) / len(found) - exact
        inward = sum(p.held_out for p in found) / len(found) - exact
        middle = sum(p.value for p in found) / len(found) - exact
        assert outward * (1 if exact > 0 else -1) > 0
        assert abs(middle) < 0.5 * max(abs(outward), abs(inward))
        assert middle == pytest.approx(0, abs=0.05 * abs(exact))
        within = sum(abs(p.value - exact) <= 2 * p.uncertainty for p in found)
        assert within >= 0.75 * len(found)


def regression(count: int, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randn(count, 1, generator=generator)


def test_least_squares_with_importance_to_a_stated_tolerance() -> None:
    """The Hessian is 2 X^T X / N, whatever the weights and the examples' losses."""
    torch.manual_seed(0)
    scales = torch.tensor([3.0, 1.5, 1.0, 1.0, 0.5, 0.2])
    x, y = regression(2048)
    x = x * scales
    model = nn.Linear(6, 1, bias=False)
    tracker = EigenTracker(model, F.mse_loss, every=64, examples=400, held_out=400, products=6)
    for xb, yb in zip(x.split(32), y.split(32), strict=True):
        model(xb)
        tracker.step((xb, yb))
    exact = torch.linalg.eigvalsh(2 * x.T @ x / len(x))
    assert tracker.largest is not None
    assert tracker.smallest is not None
    assert tracker.largest.value == pytest.approx(float(exact[-1]), rel=0.15)
    assert tracker.smallest.value == pytest.approx(float(exact[0]), rel=0.15)


def test_examples_that_are_all_used_count_alike() -> None:
    """Whatever the scores: a sample of everything is everything."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = regression(48)[0].double()
    y = torch.randint(3, (48,), generator=torch.Generator().manual_seed(0))
    size = sum(p.numel() for p in model.parameters())
    pair = {}
    for importance in (True, False):
        tracker = EigenTracker(
            model, F.cross_entropy, every=1, examples=24, held_out=24, products=size, importance=importance
        )
        tracker._sample._generator.manual_seed(0)
        tracker.step((x, y))
        assert tracker.largest is not None
        pair[importance] = tracker.largest
    exact = np.linalg.eigvalsh(Loss(model, F.cross_entropy, (x, y)).hessian() @ np.eye(size))
    # Half of the examples each: the two differ only by what the parts' scores say.
    assert pair[False].value == pytest.approx(exact[-1], rel=0.15)
    assert pair[True].value == pytest.approx(exact[-1], rel=0.15)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.drop(F.relu(self.norm(self.conv(x)))).flatten(1))
        return result


def images(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def train(kind: str, tracked: bool, steps: int = 9, importance: bool | None = None) -> dict[str, Any]:
    torch.manual_seed(3)
    model = Net()
    model.norm.eval()  # a mode of its own, which must stay
    model.norm.train(kind == "Adam")
    optimizer = getattr(torch.optim, kind)(model.parameters(), 1e-2)
    tracker = (
        EigenTracker(
            model, F.cross_entropy, every=3, examples=6, held_out=4, products=3, importance=importance
        )
        if tracked
        else None
    )
    for step in range(steps):
        x, y = images(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if tracker is not None:
            tracker.step((x, y))
    if tracker is not None:
        assert tracker.largest is not None
        tracker.close()
    return {
        "model": model.state_dict(),
        "grads": [p.grad for p in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "modes": [m.training for m in model.modules()],
        "attributes": sorted(vars(model)),
        "hooks": len(model._forward_hooks),
        "leaves": all(p.is_leaf and p.requires_grad for p in model.parameters()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", ["RMSprop", "Adam"])
@pytest.mark.parametrize("importance", [None, False])
def test_training_is_bit_for_bit_the_same(kind: str, importance: bool | None) -> None:
    assert same(train(kind, tracked=False), train(kind, tracked=True, importance=importance))


def test_training_is_untouched_also_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    tracker = EigenTracker(model, F.cross_entropy, every=1, examples=4, held_out=4, products=2)
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    monkeypatch.setattr("hessian.experimental.tracker.short_lanczos", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracker.step(images(0))
    assert same(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(m.training for m in model.modules())


def test_validation_passes_and_steps_without_a_pass_do_no_harm() -> None:
    model = Net()
    tracker = EigenTracker(model, F.cross_entropy, every=2, examples=4, held_out=4, products=2)
    for step in range(4):
        with torch.no_grad():
            model(images(9)[0][:5])
        tracker.step(images(step))
    assert tracker.largest is not None
    assert tracker.largest.step == 4


def test_outputs_of_another_batch_are_not_taken_for_those_of_this_one() -> None:
    readings = []
    x, y = images(0)
    for seen in (x, x[:5], torch.cat([x, x])):
        torch.manual_seed(0)
        model = Net().eval()  # so that the outputs are the same when they are computed anew
        tracker = EigenTracker(model, F.cross_entropy, every=1, examples=4, held_out=4, products=2)
        model(seen)
        tracker.step((x, y))
        readings.append(reading(tracker))
    assert same(readings[0], readings[1])
    assert same(readings[0], readings[2])


def reading(tracker: EigenTracker) -> tuple[Any, ...]:
    assert tracker.smallest is not None
    assert tracker.largest is not None
    return (
        *(
            getattr(p, n)
            for p in (tracker.smallest, tracker.largest)
            for n in ("value", "uncertainty", "vector")
        ),
        tracker.steps,
        tracker.products,
    )


def test_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def new() -> EigenTracker:
        torch.manual_seed(0)
        return EigenTracker(Net(), F.cross_entropy, every=4, examples=8, held_out=6, products=3)

    whole, first, second = new(), new(), new()
    for step in range(12):
        whole.step(images(step))
    for step in range(7):
        first.step(images(step))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(reading(first), reading(second))
    for step in range(7, 12):
        second.step(images(step))
    assert same(reading(whole), reading(second))


def test_state_before_the_first_estimate_and_of_another_model() -> None:
    tracker = EigenTracker(Net(), F.cross_entropy, every=2, examples=4, held_out=2, products=2)
    buffer = io.BytesIO()
    torch.save(tracker.state_dict(), buffer)
    buffer.seek(0)
    tracker.load_state_dict(torch.load(buffer, weights_only=True))
    assert tracker.largest is None
    for step in range(2):
        tracker.step(images(step))
    other = EigenTracker(nn.Linear(3, 2), F.cross_entropy)
    with pytest.raises(HessianError, match="this one has 8"):
        other.load_state_dict(tracker.state_dict())
    assert other.largest is None


def test_a_loss_that_is_not_finite_leaves_the_estimates() -> None:
    model = Net()
    tracker = EigenTracker(model, F.cross_entropy, every=2, examples=4, held_out=4, products=2)
    for step in range(2):
        tracker.step(images(step))
    before = reading(tracker)
    tracker.step(images(2))
    x, y = images(3)
    with pytest.raises(HessianError, match="loss of step 4 is nan"):
        tracker.step((x * float("nan"), y))
    with torch.no_grad():
        model.conv.weight.fill_(float("nan"))
    with pytest.raises(HessianError, match="nan"):
        tracker.step((x, y))
    assert same((*before[:6], before[7]), (*reading(tracker)[:6], reading(tracker)[7]))


def test_a_batch_loss_that_is_not_finite_leaves_the_estimates() -> None:
    model, loss = Point(), Quadratic()
    tracker = EigenTracker(model, batch_loss=loss, every=1, products=3)
    tracker.step(batches(1)[0])
    before = tracker.smallest
    loss.matrix = loss.matrix * float("inf")
    with pytest.raises(HessianError, match="must be a finite number"):
        tracker.step(batches(1)[0])
    assert tracker.smallest is before


def test_wrong_batches_and_arguments_say_so() -> None:
    model = Net()
    x, y = images(0)
    tracker = EigenTracker(model, F.cross_entropy, every=1)
    with pytest.raises(HessianError, match="no pair"):
        tracker.step(x)
    with pytest.raises(HessianError, match="length of its first, 8"):
        tracker.step((x, y[:5]))
    with pytest.raises(HessianError, match="either loss_fn"):
        EigenTracker(model)
    with pytest.raises(HessianError, match="every=0"):
        EigenTracker(model, F.cross_entropy, every=0)
    with pytest.raises(HessianError, match="at least 2"):
        EigenTracker(model, F.cross_entropy, held_out=1)
    with pytest.raises(HessianError, match="give loss_fn"):
        EigenTracker(model, batch_loss=lambda m, b: m(b).mean(), importance=True)
    with pytest.raises(HessianError, match="'convv"):
        EigenTracker(model, F.cross_entropy, parameters="convv*")
    summed = EigenTracker(model, lambda z, t: F.cross_entropy(z, t, reduction="sum"), every=1)
    with pytest.raises(HessianError, match="no mean over examples"):
        summed.step((x, y))
    by_row = EigenTracker(model, lambda z, t: F.cross_entropy(z, t, reduction="none"), every=1)
    with pytest.raises(HessianError, match="no scalar"):
        by_row.step((x, y))


def test_a_part_of_the_parameters() -> None:
    tracker = EigenTracker(Net(), F.cross_entropy, parameters="out.*", every=1, examples=5, held_out=3)
    tracker.step(images(0))
    assert tracker.largest is not None
    assert tracker.largest.vector.shape == (3 * 64 + 3,)
    assert list(tracker.parameters) == ["out.weight", "out.bias"]


def test_closing_takes_the_hook_off() -> None:
    model = Net()
    with EigenTracker(model, F.cross_entropy):
        assert len(model._forward_hooks) == 1
    assert not model._forward_hooks


def test_a_copy_of_the_model_is_not_watched() -> None:
    model = Net()
    tracker = EigenTracker(model, F.cross_entropy)
    twin = copy.deepcopy(model)
    assert all(getattr(hook, "outputs", None) is None for hook in twin._forward_hooks.values())
    twin(images(0)[0])
    assert tracker._caught.outputs is None
    model(images(0)[0])
    assert tracker._caught.outputs is not None


def test_a_short_lanczos_process_knows_its_residuals() -> None:
    a = matrix()
    for products in (1, 2, 5, 9):
        found = short_lanczos(lambda v: a @ v, torch.ones(30) + torch.arange(30) / 7, products)
        for value, vector, residual in zip(found.values, found.vectors, found.residuals, strict=True):
            assert float(vector.norm()) == pytest.approx(1, abs=1e-5)
            assert float((a @ vector - value * vector).norm()) == pytest.approx(residual, abs=2e-4)
        assert found.products == products
        assert found.values[0] <= found.values[1]
    small = short_lanczos(lambda v: 2 * v, torch.ones(30), 5)  # the space ends at once
    assert (small.products, small.values) == (1, (pytest.approx(2), pytest.approx(2)))
    assert small.residuals == pytest.approx((0, 0), abs=1e-5)
    zero = short_lanczos(lambda v: a @ v, torch.zeros(30), 30)  # a stationary point
    assert zero.values == pytest.approx((-2, 9), abs=1e-3)


def test_the_uncertainty_is_of_all_three() -> None:
    tracker = EigenTracker(Point(), batch_loss=Quadratic(1.0), every=1, products=4, examples=6, held_out=10)
    tracker.products = 3
    pair = tracker._judged(4.0, torch.ones(2), 2.0, [1.0, 2.0])
    scatter = (2.0 - 1.0) / 2 * np.sqrt(1 + 10 / 6) / 2
    assert (pair.value, pair.fitted, pair.held_out, pair.products) == (2.75, 4.0, 1.5, 3)
    assert pair.scatter == pytest.approx(np.hypot(1.25, scatter))
    assert pair.uncertainty == pytest.approx(np.sqrt(1.25**2 + scatter**2 + 2.0**2))
    older = TrackedPair(**{k: v for k, v in vars(pair).items() if k != "residual"})
    assert older.scatter == older.uncertainty  # a state of a version that did not know the residual


def readings(seed: int, count: int, every: int, images: int = 1797) -> dict[str, list[bool]]:
    """Whether the tracked eigenvalues are within twice their uncertainty of those of all the data."""
    digits = load_digits()
    x = torch.tensor(digits.data[:images] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[:images])
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    tracker = EigenTracker(model, F.cross_entropy, every=every, seed=seed)
    loss = Loss(model, F.cross_entropy, (x, y), check=False)
    generator = torch.Generator().manual_seed(seed)
    within: dict[str, list[bool]] = {"largest": [], "smallest": []}
    for _ in range(count * every):
        batch = torch.randint(len(x), (32,), generator=generator)
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if tracker.step((x[batch], y[batch])):
            exact = extreme_eigenpairs(loss.hessian(), solver=Lanczos(check=False))
            for end, found in within.items():
                pair = getattr(tracker, end)
                error = abs(pair.value - getattr(exact, end)[0].value)
                found.append(error <= 2 * pair.uncertainty)
    return within


def test_two_uncertainties_cover_both_eigenvalues() -> None:
    within = readings(0, 6, 60, 400)
    assert sum(within["largest"]) >= 5
    assert sum(within["smallest"]) == 6


@pytest.mark.slow
def test_two_uncertainties_cover_nearly_all_readings() -> None:
    within = [readings(seed, 12, 100) for seed in range(4)]
    assert sum(sum(run["largest"]) for run in within) >= 45
    assert sum(sum(run["smallest"]) for run in within) >= 47
