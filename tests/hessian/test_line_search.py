"""Line searches: exact on quadratics, right on real losses."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessian import Eigenpair, HessianError, Loss, line_search, slice_2d

from .cases import CASES


def quadratic() -> tuple[Loss, np.ndarray]:
    """Least squares, whose Hessian (3, 3) is known and whose quadratic model is exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 1, bias=False).double()
    return Loss(model, F.mse_loss, (x, y)), (2 * x.T @ x / 40).numpy()


def eigenpair(matrix: np.ndarray, i: int) -> Eigenpair:
    values, vectors = np.linalg.eigh(matrix)
    return Eigenpair(float(values[i]), vectors[:, i], 0.0, True)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_on_a_quadratic_the_model_is_exact_and_the_best_step_is_one_over_lambda(i: int) -> None:
    loss, matrix = quadratic()
    pair = eigenpair(matrix, i)
    found = line_search(loss, pair)
    np.testing.assert_allclose(found.losses, found.quadratic(found.alphas), rtol=1e-10)
    assert found.bracketed
    assert found.alpha_best == pytest.approx(1 / pair.value, rel=0.02)
    assert found.decrease == pytest.approx(found.slope**2 / (2 * pair.value), rel=1e-3)
    assert found.slope == pytest.approx(loss.gradient() @ pair.vector, rel=1e-12)
    assert found.loss == pytest.approx(loss.value(), rel=1e-13)
    assert found.examples == 40


def test_a_direction_of_any_length_has_its_curvature_measured() -> None:
    loss, matrix = quadratic()
    direction = np.array([3.0, -1.0, 2.0])
    found = line_search(loss, direction)
    unit = direction / np.linalg.norm(direction)
    assert found.curvature == pytest.approx(unit @ matrix @ unit, rel=1e-10)
    np.testing.assert_allclose(found.losses, found.quadratic(found.alphas), rtol=1e-10)


def test_losses_are_those_of_the_moved_model() -> None:
    case = CASES[2]
    loss = case.loss()
    values, vectors = np.linalg.eigh(loss.hessian() @ np.eye(loss.size))
    pair = Eigenpair(values[0], vectors[:, 0], 0.0, True)
    assert pair.value < 0
    found = line_search(loss, pair, alphas=[-3.0, 2.0, 40.0])
    assert {-3, 0, 2, 40} <= set(found.alphas)
    assert found.alphas.tolist() == sorted(found.alphas)
    theta = torch.nn.utils.parameters_to_vector(loss.objective.model.parameters()).detach()
    v = torch.as_tensor(pair.vector)
    for alpha, value in zip(found.alphas, found.losses, strict=True):
        moved = case.model()
        torch.nn.utils.vector_to_parameters(theta - alpha * found.slope * v, moved.parameters())
        assert Loss(moved, case.loss_fn, case.batches()).value() == pytest.approx(value, rel=1e-12)
    assert found.loss_best <= found.losses.min()


def test_weight_decay_moves_with_the_point() -> None:
    case = CASES[0]
    loss = case.loss(weight_decay=0.5)
    direction = np.arange(loss.size) - 20.0
    found = line_search(loss, direction, alphas=[0.7])
    unit = direction / np.linalg.norm(direction)
    model = case.model()
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(theta - 0.7 * found.slope * torch.as_tensor(unit), model.parameters())
    moved = Loss(model, case.loss_fn, case.batches(), weight_decay=0.5)
    assert found.losses[found.alphas == 0.7][0] == pytest.approx(moved.value(), rel=1e-12)


def test_a_grid_that_ends_while_the_loss_falls_goes_farther() -> None:
    """L = theta^2 / 2 with curvature said to be 1e5 times too large: 1 / lambda is far too small a step."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    data = (torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    loss = Loss(model, lambda z, y: F.mse_loss(z, y) / 2, data)
    found = line_search(loss, Eigenpair(1e5, np.ones(1), 0.0, True))
    assert found.bracketed
    assert found.alpha_best == pytest.approx(1.0, rel=0.02)
    assert found.loss_best == pytest.approx(0, abs=1e-3)


def test_a_fall_without_end_is_not_called_a_minimum() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    data = (torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    loss = Loss(model, lambda z, y: z.mean(), data)
    found = line_search(loss, Eigenpair(-1.0, np.ones(1), 0.0, True))
    assert not found.bracketed
    assert (
        found.alpha_best == found.alphas.max() == pytest.approx(1e7)
    )  # the grid to 1,000, four decades more
    np.testing.assert_allclose(found.alphas[-9:], 1e3 * 10 ** (0.5 * np.arange(9)))
    np.testing.assert_allclose(found.alphas[:9], -(10 ** np.linspace(3, -1, 9)))


def test_losses_that_overflow_far_away_do_not_stop_the_search() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    data = (torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    loss = Loss(model, lambda z, y: (torch.exp(z**2) - 1).mean(), data)
    found = line_search(loss, Eigenpair(2.0, np.ones(1), 0.0, True))
    assert not np.isfinite(found.losses).all()
    assert found.bracketed
    assert found.loss_best < 0.1 * found.loss


def test_slice_has_the_loss_at_its_corners_and_centre() -> None:
    loss, matrix = quadratic()
    v, w = eigenpair(matrix, 0), eigenpair(matrix, 2)
    found = slice_2d(loss, v, w, reach=0.5, points=5)
    assert found.losses.shape == (5, 5)
    assert found.losses[2, 2] == pytest.approx(loss.value(), rel=1e-13)
    by_default = slice_2d(loss, v, w)
    assert by_default.losses.shape == (21, 21)
    np.testing.assert_allclose(by_default.b, np.linspace(-1, 1, 21))
    step = found.a[0] * v.vector + found.b[4] * w.vector
    expected = loss.value() + loss.gradient() @ step + step @ matrix @ step / 2
    assert found.losses[0, 4] == pytest.approx(expected, rel=1e-10)


def test_directions_that_are_none() -> None:
    loss, _ = quadratic()
    with pytest.raises(HessianError, match="3 parameters"):
        line_search(loss, np.ones(4))
    with pytest.raises(HessianError, match="length 0"):
        line_search(loss, np.zeros(3))
    g = loss.gradient()
    across = np.cross(g, [1.0, 0, 0])
    with pytest.raises(HessianError, match="perpendicular to the gradient"):
        line_search(loss, across)


def double_well() -> tuple[Loss, Eigenpair]:
    """theta^4 / 4 - theta^2 / 2 + 0.05 theta at 0.1: downhill is 0.97; behind the hill -1.02, lower still."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.1)
    data = (torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))
    loss = Loss(model, lambda z, y: (z**4 / 4 - z**2 / 2 + 0.05 * z).mean(), data)
    return loss, Eigenpair(3 * 0.1**2 - 1, np.ones(1), 0.0, True, 0.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_step_is_sought_downhill_whichever_sign_the_vector_has(sign: int) -> None:
    loss, pair = double_well()
    pair = dataclasses.replace(pair, vector=sign * pair.vector)
    found = line_search(loss, pair)
    assert found.alpha_best > 0
    assert found.bracketed
    end = 0.1 - found.alpha_best * found.slope * pair.vector[0]
    assert end == pytest.approx(0.9735, abs=0.02)
    assert found.loss_best == pytest.approx(0.9735**4 / 4 - 0.9735**2 / 2 + 0.05 * 0.9735, abs=1e-4)
    both = line_search(loss, pair, alphas=np.linspace(-40, 40, 81))
    assert both.alpha_best < 0
    assert both.loss_best < found.loss_best


def test_the_slope_of_a_vector_that_is_known_to_an_angle() -> None:
    loss, matrix = quadratic()
    pair = eigenpair(matrix, 2)
    gradient = loss.gradient()
    angle = 0.01
    found = line_search(loss, dataclasses.replace(pair, angle=angle))
    across = np.sqrt(gradient @ gradient - found.slope**2)
    assert found.angle == angle
    assert found.slope_doubt == pytest.approx(np.sin(angle) * across + (1 - np.cos(angle)) * abs(found.slope))
    assert found.determined
    tilted = found.alpha_best * found.slope_doubt / abs(found.slope)
    assert found.alpha_doubt == pytest.approx(tilted + found.flat_doubt)
    # No unit vector within that angle has a slope farther away.
    rng = np.random.default_rng(0)
    for _ in range(200):
        w = rng.normal(size=3)
        w -= (w @ pair.vector) * pair.vector
        u = np.cos(angle) * pair.vector + np.sin(angle) * w / np.linalg.norm(w)
        assert abs(gradient @ u - found.slope) <= found.slope_doubt * (1 + 1e-9)
    open_ = line_search(loss, dataclasses.replace(pair, angle=np.pi / 2))
    unknown = line_search(loss, dataclasses.replace(pair, angle=None))
    assert open_.slope_doubt == unknown.slope_doubt == pytest.approx(across + abs(found.slope))
    assert (open_.angle, unknown.angle) == (np.pi / 2, None)
    vector = line_search(loss, pair.vector)
    assert (vector.angle, vector.slope_doubt, vector.determined) == (0, 0, True)
    assert vector.alpha_doubt == vector.flat_doubt < 1e-6 * vector.alpha_best


@pytest.mark.parametrize("offset", [1.0, 1e4])
def test_where_the_loss_is_flat_the_best_step_has_its_doubt(offset: float) -> None:
    """In float32 a parabola on top of a constant has its least anywhere within rounding of the constant."""
    theta = nn.Parameter(torch.tensor([0.3, 0.0]))

    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = theta

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + (self.theta * torch.tensor([2.0, 1.0])).square().sum() / 2 + offset

    loss = Loss(Bowl(), lambda y, _: y.mean(), [(torch.zeros(4, 1), torch.zeros(4, 1))])
    found = line_search(loss, np.array([1.0, 0.0]))
    # The loss rises by 4 (1.2 alpha)^2 / 2 from 1 / 4 on, and its eps is 1.2e-7 of the offset.
    expected = np.sqrt(2 * 1.2e-7 * offset / 4) / 1.2
    assert found.bracketed
    assert found.flat_doubt == pytest.approx(expected, rel=0.5)
    assert abs(found.alpha_best - 0.25) <= found.alpha_doubt + 0.01 * 0.25


def test_where_the_sign_of_the_slope_is_open_nothing_is_determined() -> None:
    loss, matrix = quadratic()
    pair = eigenpair(matrix, 0)
    slope, length = loss.gradient() @ pair.vector, np.linalg.norm(loss.gradient())
    just = np.arctan(abs(slope) / np.sqrt(length**2 - slope**2))  # g.u = 0 at this angle
    for angle, determined in ((0.45 * just, True), (1.05 * just, False)):
        found = line_search(loss, dataclasses.replace(pair, angle=float(angle)))
        assert found.determined is determined
        assert bool(np.isfinite(found.alpha_doubt)) is determined
    assert found.alpha_doubt == np.inf


def test_the_best_step_is_refined_to_one_percent_and_no_further() -> None:
    loss, pair = double_well()
    found = line_search(loss, pair)
    grid = np.r_[-np.logspace(-1, 3, 9), 0, np.logspace(-1, 3, 9)] / 0.97
    assert set(np.round(grid, 9)) <= set(np.round(found.alphas, 9))
    assert 3 <= len(found.alphas) - len(grid) <= 12
    exact = (0.9735 - 0.1) / 0.049
    assert found.alpha_best == pytest.approx(exact, rel=0.01)


def test_the_best_step_is_sought_between_its_neighbours() -> None:
    loss, matrix = quadratic()
    pair = eigenpair(matrix, 1)
    steps = np.array([0.5, 0.9, 2.0]) / pair.value  # the best one is the last but one
    found = line_search(loss, pair, alphas=steps)
    assert found.alpha_best == pytest.approx(1 / pair.value, rel=0.02)
    tried = np.setdiff1d(found.alphas, [0.0, *steps])
    assert len(tried) >= 3
    assert steps[0] < tried.min() < tried.max() < steps[2]
