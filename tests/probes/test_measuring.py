"""Readings: exact means over the data whatever the batches, with honest standard errors."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from probes import (
    Classification,
    MultiLabel,
    ProbeError,
    ProbeResult,
    ProbeSet,
    Reading,
    Reference,
    Regression,
)
from probes.intervals import wilson
from probes.mean_se import Tally

from .models import CLASSES, ConvNet, Mlp, assert_identical, images, random_streams, vectors

CLASSES_8 = 8


def trained(model: nn.Module, layers: Any, batches: list[Any], **options: Any) -> ProbeSet:
    probes = ProbeSet(model, layers, **{"num_classes": CLASSES, **options})
    for x, y in batches:
        model.train()(x)
        probes.step(y)
    return probes


def logits_of(probes: ProbeSet, layer: str, x: torch.Tensor) -> torch.Tensor:
    """A probe's answers in float64, from its weights and the features."""
    group, i = probes._bank._find(layer)
    weight, bias = group.folded()
    return x.flatten(1).double() @ weight[i].double().T + bias[i].double()


def whole(batches: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("batch_size", [1, 7, 16, 23, 100])
def test_evaluation_equals_a_direct_computation(batch_size: int) -> None:
    x, y = whole(vectors(5, 10, classes=5))
    y[::9] = -100
    model = Mlp(dropout=0.5)
    probes = trained(model, ["0", "input"], vectors(20))
    loader = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    result = probes.evaluate(loader, split="test", progress=False)
    keep = y != -100
    n = int(keep.sum())
    for layer, features in {"input": x, "0": model[0](x).detach()}.items():
        logits = logits_of(probes, layer, features)[keep]
        losses = F.cross_entropy(logits, y[keep], reduction="none")
        errors = (logits.argmax(1) != y[keep]).double()
        reading = result[layer]
        assert reading.n == n
        assert reading.steps == 20
        assert reading.loss == pytest.approx(losses.mean().item(), rel=1e-5)
        assert reading.loss_se == pytest.approx(losses.std(unbiased=False).item() / n**0.5, rel=1e-4)
        assert reading.error == pytest.approx(errors.mean().item())
        p = errors.mean().item()
        assert reading.error_se == pytest.approx((p * (1 - p) / n) ** 0.5)
        assert reading.top5_error is None
    (reference,) = result.references
    own = (model.eval()(x).argmax(1) != y)[keep].double()
    assert result.split == "test"
    assert reference.n == n
    assert reference.majority_error == pytest.approx(1 - int(y[keep].bincount().max()) / n)
    assert reference.model_error == pytest.approx(own.mean().item())
    assert reference.model_error_se == pytest.approx(own.std(unbiased=False).item() / n**0.5)


def test_ties_rank_the_lower_class_first() -> None:
    """As argmax does: an untrained probe answers class 0, and its top five are classes 0 to 4."""
    y = torch.arange(CLASSES_8)
    probes = ProbeSet(Mlp(), "0", CLASSES_8)
    reading = probes.evaluate([(torch.randn(CLASSES_8, 6), y)], progress=False)["0"]
    assert reading.error == 7 / 8
    assert reading.top5_error == 3 / 8
    assert reading.loss == pytest.approx(np.log(8))


@given(st.integers(0, 2**32 - 1), st.integers(6, 12))
@settings(max_examples=30, deadline=None)
def test_errors_agree_with_topk(seed: int, classes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, y = torch.randn(1, 40, classes, generator=g), torch.randint(0, classes, (40,), generator=g)
    _, error, top5 = Classification(classes).measure(logits, y)
    best = logits[0].topk(5).indices
    assert torch.equal(error[0] == 0, best[:, 0] == y)
    assert torch.equal(top5[0] == 0, (best == y[:, None]).any(1))


def test_other_targets() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=g)
    tags = (x[:, :2] + 0.3 * torch.randn(50, 2, generator=g) > 0).float()
    numbers = x[:, :1] * 1000 + 5000 + 100 * torch.randn(50, 1, generator=g)
    targets = {"tags": MultiLabel(2), "numbers": Regression(1), "classes": Classification(CLASSES)}
    labels = {"tags": tags, "numbers": numbers, "classes": x[:, :CLASSES].argmax(1)}
    model = Mlp()
    probes = trained(model, "input", [(x, labels)] * 200, num_classes=None, targets=targets, lr=0.1)
    loader = [(x[i : i + 20], {k: v[i : i + 20] for k, v in labels.items()}) for i in (0, 20, 40)]
    result = probes.evaluate(loader, progress=False)
    logits = logits_of(probes, "input", x)
    by_target = {r.target: r for r in result.readings}
    assert by_target["tags"].loss == pytest.approx(
        F.binary_cross_entropy_with_logits(logits[:, :2], tags.double()).item(), rel=1e-5
    )
    assert by_target["tags"].error == pytest.approx(((logits[:, :2] > 0) != tags).double().mean().item())
    shift, scale = probes._bank._units["numbers"].double()
    squares = (logits[:, 2:3] * scale + shift - numbers).square()
    reading = by_target["numbers"]
    assert reading.loss == pytest.approx(squares.mean().item(), rel=1e-4)
    assert reading.error == pytest.approx(
        squares.mean().item() / numbers.var(unbiased=False).item(), rel=1e-4
    )
    assert reading.error < 0.05
    assert reading.error_se == pytest.approx(reading.loss_se / numbers.var(unbiased=False).item(), rel=1e-4)
    references = {r.target: r for r in result.references}
    majority = torch.minimum(tags.mean(0), 1 - tags.mean(0)).mean().item()
    assert references["tags"].majority_error == pytest.approx(majority)
    assert references["numbers"].majority_error == 1
    assert references["tags"].model_error is None
    assert result.of("tags").readings == (by_target["tags"],)


# -- standard errors --------------------------------------------------------------------------------


def clustered(clusters: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that agree within an example, with a varying number of rows."""
    g = torch.Generator().manual_seed(4)
    values = torch.randn(clusters, 1, generator=g) + 0.3 * torch.randn(clusters, 6, generator=g) + 2
    sizes = torch.randint(1, 7, (clusters, 1), generator=g)
    return values, torch.arange(6) < sizes


def test_rows_of_one_example_are_not_independent() -> None:
    values, counted = clustered()
    tally = Tally()
    for i in range(0, len(values), 64):
        tally.add(values[i : i + 64], counted[i : i + 64])
    mean, error = tally.means()
    kept = values.masked_fill(~counted, 0)
    g = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (4000, len(values)), generator=g)
    bootstrap = kept.sum(1)[picks].sum(1) / counted.sum(1)[picks].sum(1)
    naive = values[counted].std() / counted.sum() ** 0.5
    assert float(mean) == pytest.approx(values[counted].double().mean().item())
    assert float(error) == pytest.approx(bootstrap.std().item(), rel=0.05)
    assert float(error) > 1.5 * float(naive)


def test_standard_error_covers_the_truth() -> None:
    """In 95 of 100 samples the mean lies within 1.96 standard errors."""
    g = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(600):
        tally = Tally()
        tally.add(torch.rand(80, 1, generator=g), torch.ones(80, 1, dtype=torch.bool))
        mean, error = tally.means()
        inside += abs(float(mean) - 0.5) < 1.96 * float(error)
    assert 0.92 < inside / 600 < 0.975


# -- what evaluation leaves alone -------------------------------------------------------------------


def test_modes_streams_and_weights_are_restored() -> None:
    model = ConvNet().train()
    model.bn1.eval()
    probes = trained(model.train(), ["conv1", "fc"], images())
    model.bn1.eval()
    x, y = whole(images())
    shuffled = DataLoader(TensorDataset(x, y), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    modes = [m.training for m in model.modules()]
    state, streams = {k: v.clone() for k, v in model.state_dict().items()}, random_streams()
    own = shuffled.generator.get_state()
    first = probes.evaluate(shuffled, progress=False)
    probes.fit([(x, y)], shuffled, max_epochs=1, progress=False)
    assert [m.training for m in model.modules()] == modes
    assert_identical(dict(model.state_dict()), state)
    assert_identical(random_streams(), streams)
    assert torch.equal(shuffled.generator.get_state(), own)
    assert torch.is_grad_enabled()
    assert first.readings


def test_evaluation_keeps_a_waiting_forward() -> None:
    model, batches = Mlp(), vectors()
    probes = trained(model, "0", batches)
    model(batches[0][0])
    probes.evaluate(batches, progress=False)
    probes.step(batches[0][1])
    assert probes.evaluate(batches, progress=False)["0"].steps == len(batches) + 1


class Auxiliary(nn.Module):
    """A head that runs in training only, another in evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.aux, self.head = nn.Linear(6, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.scores = nn.Softmax(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        return self.head(h) + self.aux(h) if self.training else self.scores(self.head(h))


@pytest.mark.parametrize("evaluate_first", [False, True])
def test_layers_of_one_mode(evaluate_first: bool) -> None:
    model, batches = Auxiliary(), vectors()
    probes = ProbeSet(model, "*", CLASSES)
    if evaluate_first:
        names = [r.layer for r in probes.evaluate(batches, progress=False).readings]
        assert names == ["body", "head", "scores"]
    for x, y in batches:
        model(x)
        probes.step(y)
    result = probes.evaluate(batches, progress=False)
    assert [r.layer for r in result.readings] == ["body", "head"]
    assert result.missing == ("aux",)


# -- fitting ----------------------------------------------------------------------------------------


def learnable(rows: int = 120) -> list[Any]:
    g = torch.Generator().manual_seed(6)
    x = torch.randn(rows, 6, generator=g)
    y = (x[:, :CLASSES] + torch.randn(rows, CLASSES, generator=g)).argmax(1)
    return [(x[i : i + 20], y[i : i + 20]) for i in range(0, rows, 20)]


def test_fit_returns_the_best_epochs_weights() -> None:
    """Each probe ends at the lowest of the validation losses that it went through."""
    train, valid = learnable()[:2], learnable()[2:]
    model = Mlp()
    losses = []
    for epochs in (1, 4, 16):
        probes = ProbeSet(model, ["input", "1"], CLASSES, lr=1.0)
        result = probes.fit(train, valid, max_epochs=epochs, patience=100, progress=False)
        losses.append([result["input"].loss, result["1"].loss])
    ends = torch.tensor(losses)
    assert (ends.diff(dim=0) <= 1e-5).all()  # more epochs can only help
    assert ends[-1] == pytest.approx(ends.min(0).values.tolist(), rel=1e-4)
    stepped = trained(model, ["input", "1"], train * 16, lr=1.0).evaluate(valid, progress=False)
    assert stepped["input"].loss > ends[-1][0] + 0.01  # the last epoch is not the best: this test can fail


def test_fit_stops_early() -> None:
    calls = 0

    class Counting(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            nonlocal calls
            calls += 1
            return super().__iter__()

    probes = ProbeSet(Mlp(), "input", CLASSES, lr=1.0)
    probes.fit(Counting(learnable()[:2]), learnable()[2:], max_epochs=500, patience=2, progress=False)
    assert calls < 100


def test_the_better_rate_is_shown() -> None:
    batches = learnable()
    probes = trained(Mlp(), "input", batches * 3, lr=(1e-6, 0.1))
    assert probes.evaluate(batches, progress=False)["input"].lr == 0.1
    probes = ProbeSet(Mlp(), "input", CLASSES, lr=(0.1, 1e-6))
    assert probes.fit(batches, batches, max_epochs=3, progress=False)["input"].lr == 0.1


def test_fit_needs_a_loader_that_can_be_read_again() -> None:
    probes = ProbeSet(Mlp(), "input", CLASSES)
    with pytest.raises(ProbeError, match="no batch in pass 2"):
        probes.fit(iter(learnable()), learnable(), progress=False)


class Augmented(Dataset):  # type: ignore[type-arg]
    """Changes an example at this chance whenever it is read, in one of its numbers, or its label."""

    def __init__(self, chance: float, what: int) -> None:
        self.x, self.y = whole(learnable())
        self.chance, self.what = chance, what

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.x[i].clone(), self.y[i].clone()
        if torch.rand(()) < self.chance:
            if self.what == 0:
                x[-1] += 1e-4
            else:
                y[()] = (y + 1) % CLASSES
        return x, y


@pytest.mark.parametrize("what", [0, 1])
def test_validation_data_that_change_between_passes_are_refused(what: int) -> None:
    """Rare as it is: in one example of forty."""
    torch.manual_seed(0)
    probes = ProbeSet(Mlp(), "input", CLASSES)
    valid = DataLoader(Augmented(0.025, what), 16)
    with pytest.raises(ProbeError, match="'valid' are not those of the first pass"):
        probes.fit(learnable(), valid, patience=50, progress=False)
    assert probes.evaluate(learnable(), progress=False)["input"].steps == 0  # nothing has changed
    fitted = probes.fit(valid, learnable(), max_epochs=3, progress=False)  # for training it is no harm
    assert fitted["input"].steps == 24


def test_validation_data_may_be_shuffled_but_not_replaced() -> None:
    x, y = whole(learnable())
    probes = ProbeSet(Mlp(), "input", CLASSES)
    shuffled = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    assert probes.fit(learnable(), shuffled, max_epochs=4, progress=False)["input"].n == len(x)
    dropping = DataLoader(TensorDataset(x, y), 16, shuffle=True, drop_last=True)
    with pytest.raises(ProbeError, match="are not those of the first pass"):
        probes.fit(learnable(), dropping, progress=False)


def test_text_of_a_result() -> None:
    text = str(trained(Mlp(), ["0", "3"], vectors()).evaluate(vectors(), split="valid", progress=False))
    assert [line.split()[0] for line in text.splitlines()] == ["layer", "0", "3", "valid:"]
    assert "nan" not in text


# -- intervals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "n"), [(0, 64), (1, 64), (2, 299), (50, 100), (63, 64), (64, 64), (0, 1)])
def test_the_interval_of_independent_rows_is_wilsons(wrong: int, n: int) -> None:
    """scipy's; no error at all in 64 rows still says up to 5.7%."""
    tally = Tally()
    tally.add((torch.arange(n) < wrong).double()[None, :, None], torch.ones(n, 1, dtype=torch.bool))
    exact = binomtest(wrong, n).proportion_ci(method="wilson")
    assert tally.interval(0) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_interval_covers_the_truth_where_errors_are_few() -> None:
    """Wilson's comes to 0.92 of them for p = 0.01; by the standard error it would be 0.63."""
    g = torch.Generator().manual_seed(0)
    for p in (0.01, 0.05, 0.3):
        rates = (torch.rand(2000, 100, generator=g) < p).double().mean(1)
        bounds = [wilson(float(r), float((r * (1 - r) / 100).sqrt()), 100) for r in rates]
        assert sum(low <= p <= high for low, high in bounds) / 2000 > 0.905


def test_rows_of_one_example_widen_the_interval() -> None:
    """All rows of an example alike: the interval is that of examples. All right: an example counts once."""
    alike, once = Tally(), Tally()
    wrong = (torch.arange(40) < 6).double()
    alike.add(wrong[None, :, None].expand(-1, -1, 25), torch.ones(40, 25, dtype=torch.bool))
    once.add(wrong[None, :, None], torch.ones(40, 1, dtype=torch.bool))
    assert alike.interval(0) == pytest.approx(once.interval(0))
    perfect = Tally()
    perfect.add(torch.zeros(1, 40, 25), torch.arange(40)[:, None].expand(-1, 25) < 30)
    assert perfect.interval(0) == pytest.approx(wilson(0.0, 0.0, 30))
    assert perfect.interval(0)[1] == pytest.approx(1.959964**2 / (30 + 1.959964**2), rel=1e-6)


def test_readings_carry_their_intervals() -> None:
    x, y = whole(vectors(8, 8))
    probes = trained(Mlp(), "input", vectors(8, 8) * 60, lr=0.3)
    result = probes.evaluate([(x, y)], progress=False)
    reading = result["input"]
    assert reading.error == 0
    assert reading.error_se == 0
    assert reading.error_interval == pytest.approx((0, 0.0566), abs=1e-4)
    assert re.search(r"^input +0\.00 +0\.00 to 5\.66 +0\.\d{4} ± 0\.\d{4} +6 +flatten", str(result), re.M)
    own = result.references[0]
    exact = binomtest(round(own.model_error * 64), 64).proportion_ci(method="wilson")
    assert own.model_interval == pytest.approx((exact.low, exact.high))
    assert f"(95% interval {100 * exact.low:.2f} to {100 * exact.high:.2f})" in str(result)


def test_text_shows_what_there_is() -> None:
    """The top-5 error with more than five classes, the gap of a convex fit, the target among several."""
    plain = Reading("a", "y", "flatten", 6, 0.1, 9, 50, 0.5, 0.1, 0.2, 0.05, None, None)
    ref = Reference("y", 50, 0.5, None, None)
    head = str(ProbeResult("valid", (plain,), (ref,))).splitlines()[0]
    assert head.split("  ") == [
        part for part in head.split("  ") if "top-5" not in part and "gap" not in part
    ]
    rich = dataclasses.replace(plain, top5_error=0.1, top5_error_se=0.02, gap=3e-7)
    text = str(ProbeResult("valid", (rich, plain), (ref,))).splitlines()
    assert "top-5 error (%)" in text[0]
    assert "gap (nats)" in text[0]
    assert "target" not in text[0]
    assert "10.00 ± 2.00" in text[1]
    assert "3.0e-07" in text[1]
    assert "±" in text[2]
    assert len({line.index("flatten") for line in text[1:3]}) == 1
    both = ProbeResult(
        "valid", (plain, dataclasses.replace(plain, target="z")), (ref, Reference("z", 5, 1, None, None))
    )
    assert str(both).splitlines()[2].endswith("z")
    assert "valid (z): 5 rows" in str(both)


def test_regression_has_an_interval_of_its_own() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    probes = trained(Mlp(), "input", [(x, x[:, 0])] * 50, num_classes=None, targets=Regression(), lr=0.1)
    reading = probes.evaluate([(x, x[:, 0])], progress=False)["input"]
    low, high = reading.error_interval
    assert high - reading.error == pytest.approx(1.959964 * reading.error_se)
    assert low == pytest.approx(max(0, reading.error - 1.959964 * reading.error_se))
