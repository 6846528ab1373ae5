"""The path of penalties: loose where that is enough to choose by, finished at the best."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probes import ArrayFeatures, fit_probes
from probes.fit import path as path_module
from probes.fit import solver
from probes.fit.features import Rows, Scaling
from probes.fit.layer import LayerFit
from probes.fit.metric import Gram, Metric
from probes.fit.path import _REACH, Fit, Path
from probes.fit.softmax import Softmax
from probes.fit.solver import Solution, _Descent, minimise
from probes.fit.splits import Splits

from .fitting import clusters, optimum

STRENGTHS = [1.0, 0.316, 0.1, 0.0316, 0.01, 0.00316, 0.001]


def splits(n=600, size=80, noise=3.0, seed=0):
    x, y = clusters(n, size, 4, seed, noise)
    return ArrayFeatures({"x": x[::2]}, y[::2]), ArrayFeatures({"x": x[1::2]}, y[1::2])


@pytest.mark.parametrize("noise", [1.0, 3.0, 6.0])
def test_the_chosen_one_is_finished_and_the_others_as_loose_as_they_may_be(noise):
    train, valid = splits(noise=noise)
    found = fit_probes(train, valid, progress=False)
    best = min(found.path, key=lambda point: point.valid_loss)
    assert found.valid["x"].l2 == best.l2
    assert best.converged
    assert best.gap <= 1e-6 * best.objective
    assert found.valid["x"].loss == pytest.approx(best.valid_loss)
    loose = [point for point in found.path if not point.converged]
    assert loose, "nothing was left out, so this shows nothing"
    for point in loose:
        alone = fit_probes(train, valid, l2=point.l2, progress=False)
        se = alone.valid["x"].loss_se
        assert point.gap <= 0.1 * se * 1.05
        least, _ = optimum(train["x"], train.labels, point.l2)
        assert point.objective - least <= point.gap + 1e-9
        assert abs(point.valid_loss - alone.valid["x"].loss) < se, "a choice could tell this"


def test_the_choice_is_as_good_as_on_a_path_that_is_finished_everywhere(monkeypatch):
    for seed in range(4):
        loose = fit_probes(*splits(seed=seed), progress=False).valid["x"]
        with monkeypatch.context() as finished:
            finished.setattr(path_module, "_SHARE", 0.0)
            finished.setattr(path_module, "_FIRST", 0.0)
            whole = fit_probes(*splits(seed=seed), progress=False)
        assert all(point.converged for point in whole.path)
        assert loose.loss <= whole.valid["x"].loss + 1e-4


def test_it_takes_two_thirds_of_the_passes_at_most(monkeypatch):
    passes = []
    evaluate = Softmax.evaluate
    monkeypatch.setattr(Softmax, "evaluate", lambda *a, **k: passes.append(1) or evaluate(*a, **k))
    train, valid = splits(noise=1.0)
    fit_probes(train, valid, l2=STRENGTHS, progress=False)
    loosely = len(passes)
    start = None
    for l2 in STRENGTHS:
        start = fit_probes(train, valid, l2=l2, start=start, progress=False)
    assert loosely < (len(passes) - loosely) * 2 / 3


def problem(size=20):
    x, y = clusters(200, size, 3)
    rows = Rows(x, Scaling.of(x, "x"), 2**30, torch.device("cpu"), 3)
    return Softmax(rows, torch.from_numpy(y), 3), Gram(rows, 4096)


class Scripted(Path):
    """Fits whose validation losses, loose and finished, are written down."""

    def __init__(self, losses):
        self.losses, self.made = losses, []
        softmax, gram = problem()
        super().__init__(softmax, gram, list(losses), lambda theta: None, 1e-6, 100)

    def _fit(self, l2, start, slack, steps=0):
        is_finished = slack == 0
        self.made.append((l2, is_finished))
        gap = 1e-9 if is_finished else min(slack, 0.005)
        solution = Solution(torch.zeros(3, 21), 1.0, gap, steps + 1)
        return Fit(l2, solution, SimpleNamespace(loss=(self.losses[l2][is_finished], 0.05)), is_finished)


@pytest.mark.parametrize(
    ("losses", "tried", "finished"),
    [
        ({3.0: (1.0, 1.0), 2.0: (0.5, 0.5), 1.0: (0.6, 0.6), 0.5: (0.7, 0.7), 0.1: (0.1, 0.1)}, 4, [2.0]),
        ({3.0: (1.0, 1.0), 2.0: (0.9, 0.9), 1.0: (0.8, 0.8), 0.5: (0.7, 0.7), 0.1: (0.6, 0.6)}, 5, [0.1]),
        ({3.0: (1.0, 1.0), 2.0: (0.5, 0.7), 1.0: (0.6, 0.6), 0.5: (0.7, 0.7)}, 4, [2.0, 1.0]),
        ({3.0: (1.0, 1.0), 2.0: (0.5, 0.7), 1.0: (0.6, 0.8), 0.5: (0.76, 0.7)}, 4, [2.0, 1.0]),
        ({3.0: (0.5, 0.5), 2.0: (0.6, 0.6), 1.0: (0.6, 0.6), 0.5: (0.1, 0.1)}, 3, [3.0]),
        ({3.0: (0.5, 0.5), 2.0: (0.5, 0.5), 1.0: (0.5, 0.5), 0.5: (0.1, 0.1)}, 3, [3.0, 2.0, 1.0]),
        ({3.0: (0.5, 0.5), 2.0: (0.54, 0.49), 1.0: (0.56, 0.1)}, 3, [3.0, 2.0]),
    ],
)
def test_which_are_tried_and_which_are_finished(losses, tried, finished):
    path = Scripted(losses)
    path.follow([path._problem.start()])
    assert [fit.l2 for fit in path.fits] == list(losses)[:tried]
    best = path.finish()
    assert [l2 for l2, is_finished in path.made if is_finished] == finished
    assert best.valid_loss == min(fit.valid_loss for fit in path.fits)
    assert best.is_finished


def test_a_metric_serves_two_decades_and_no_longer():
    softmax, gram = problem()
    path = Path(softmax, gram, [10.0, 1e-4], None, 1e-6, 100)
    first = path._near(10.0)
    assert path._metric[0] == 1.0
    assert path._near(1.0 / _REACH) is first
    assert path._near(0.09) is not first
    assert path._metric[0] == pytest.approx(0.009)
    assert path._near(0.001) is path._near(0.0009)
    path._near(2e-4)
    assert path._metric[0] == 1e-4, "none is weaker than the weakest"


def test_a_slack_ends_a_descent_and_its_gap_holds():
    x, y = clusters(300, 12, 4)
    rows = Rows(x, Scaling.of(x, "x"), 2**30, torch.device("cpu"), 4)
    softmax = Softmax(rows, torch.from_numpy(y), 4)
    metric = Metric(softmax, Gram(rows, 4096), 1e-3)
    least, _ = optimum(x, y, 1e-3)
    steps = []
    for slack in (1e-1, 1e-2, 1e-3, 0.0):
        found = minimise(softmax, metric, 1e-3, softmax.start(), 1e-8, 500, slack=slack)
        assert found.value - least <= found.gap + 1e-9
        assert found.gap <= max(slack, 1e-8 * found.value)
        steps.append(found.iterations)
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] / 2


def test_a_small_slack_is_certified_in_float64(monkeypatch):
    dtypes = []
    evaluate = Softmax.evaluate
    monkeypatch.setattr(Softmax, "evaluate", lambda *a, **k: dtypes.append(a[3]) or evaluate(*a, **k))
    softmax, gram = problem()
    metric = Metric(softmax, gram, 1e-2)
    for slack, last in ((1e-2, torch.float32), (solver._ROUNDING / 10, torch.float64), (0.0, torch.float64)):
        minimise(softmax, metric, 1e-2, softmax.start(), 1e-9, 500, slack=slack)
        assert dtypes[-1] == last


def test_rows_are_held_as_far_as_memory_allows():
    x, _ = clusters(100, 10, 2)
    scaling = Scaling.of(x, "x")
    z = (x.astype(np.float64) - scaling.mean.numpy()) / scaling.scale.numpy()
    for memory, held in (
        (3999, set()),
        (4000, {torch.float32}),
        (11999, {torch.float32}),
        (12000, {torch.float32, torch.float64}),
    ):
        rows = Rows(x, scaling, memory, torch.device("cpu"))
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-14)):
            for _ in range(2):
                found = torch.cat([block for _, block in rows.blocks(dtype)])
                assert found.dtype == dtype
                np.testing.assert_allclose(found, z, atol=tolerance)
        assert set(rows._held) == held


def test_memory_is_halved_between_rows_and_gram_matrix():
    x, y = clusters(100, 10, 2)
    splits = Splits.of(ArrayFeatures({"x": x}, y), ArrayFeatures({"x": x}, y), None, None)
    for memory, widest, held in (
        (0, 1, False),
        (2 * 28 * 64**2 - 1, 63, True),
        (2 * 28 * 64**2, 64, True),
        (2**40, 4096, True),
        (2 * 4000 - 1, 11, False),
        (2 * 4000, 11, True),
    ):
        fit = LayerFit(splits, "x", memory, torch.device("cpu"))
        assert fit._widest == widest
        assert fit._rows["train"]._holds[torch.float32] == held
        assert not fit._rows["valid"]._holds[torch.float32]


def test_a_fit_is_finished_where_it_can_go_no_further():
    softmax, gram = problem()
    for tol, max_iter, slack, is_finished in (
        (1e-18, 300, 0.0, True),  # rounding hides the rest
        (1e-18, 300, 1e-2, False),
        (1e-18, 1, 1e-9, True),  # no more steps
        (1e-1, 300, 1e-1, True),  # within the tolerance
    ):
        fit = Path(softmax, gram, [0.1], None, tol, max_iter)._fit(0.1, softmax.start(), slack)
        assert fit.is_finished == is_finished
        assert fit.solution.iterations <= max_iter
    assert (
        Path(softmax, gram, [0.1], None, 1e-9, 7)._fit(0.1, softmax.start(), 0.0, 5).solution.iterations == 7
    )


def test_no_point_is_looked_at_twice_in_float64(monkeypatch):
    softmax, gram = problem()
    start = minimise(softmax, Metric(softmax, gram, 0.1), 0.1, softmax.start(), 1e-9, 500).theta
    start[0, -1] += 1e-3  # only the bias is off
    points = []
    evaluate = Softmax.evaluate
    monkeypatch.setattr(
        Softmax, "evaluate", lambda *a, **k: points.append(a[1].numpy().tobytes()) or evaluate(*a, **k)
    )
    descent = _Descent(softmax, Metric(softmax, gram, 0.1), 0.1, start, None, 0.0)
    assert descent.run(torch.float64, 1e-6, 100).gap < 1e-6
    assert descent.iterations == 0, "the weights were to stay"
    assert 2 < len(points) == len(set(points))
