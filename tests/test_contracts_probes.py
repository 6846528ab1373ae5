"""Reductions, targets and read-outs of one's own: each is defined here, outside the package, and used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import QuantileRegressor
from sklearn.neighbors import NearestCentroid
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probes import (
    ArrayFeatures,
    Features,
    FeatureStore,
    Flatten,
    Pool,
    ProbeError,
    ProbeResult,
    ProbeSet,
    Readout,
    Reduction,
    Rows,
    Subset,
    Target,
    fit_probes,
    nearest_neighbours,
    read_out,
)

from .probes.fitting import clusters, standardised
from .probes.models import CLASSES, ConvNet, Mlp, assert_identical, images, seed_everything

# -- a reduction ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range(Reduction):
    """The largest value of each channel minus the smallest, to a power."""

    power: int = 1
    needs_layout: ClassVar[bool] = True

    def bind(self, features: Features, *, name: str, seed: int) -> Callable[[Features], Features]:
        if not features.positions:
            raise ProbeError(f"layer {name!r} has no positions, so no range over them.")
        return self.reduced

    def reduced(self, features: Features) -> Features:
        value = features.channels_first().flatten(2)
        return Features((value.amax(2) - value.amin(2)) ** self.power, 1)


@dataclass(frozen=True)
class Doubled(Reduction):
    """Twice every number."""

    def bind(self, features: Features, *, name: str, seed: int) -> Callable[[Features], Features]:
        return lambda f: Features(2 * f.value.flatten(1), 1)


def ranges(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).amax(2) - x.flatten(2).amin(2)


def convnet() -> ConvNet:
    seed_everything()
    return ConvNet()


def loader() -> DataLoader[Any]:
    x, y = (torch.cat(part) for part in zip(*images(4), strict=True))
    return DataLoader(TensorDataset(x, y), 6)


def extract(path: Path, reduce: Any, layers: Any = ("input", "conv1"), **options: Any) -> FeatureStore:
    options = {"progress": False, **options}
    return FeatureStore.extract(convnet(), loader(), path / "store", layers=layers, reduce=reduce, **options)


def test_a_reduction_of_ones_own_in_a_probe_set() -> None:
    model, (x, y) = convnet(), images(1)[0]
    reduce = {"conv1": Range(2), "conv2": (Range(), Subset(3)), "input": "avg"}
    with ProbeSet(model, ["input", "conv1", "conv2"], CLASSES, reduce=reduce) as probes:
        model(x)
        batch = probes._reader.features
        assert batch is not None
        assert_identical(batch["conv1"][0], ranges(model.conv1(x)).detach() ** 2)
        probes.step(y)
        assert probes.reductions == {
            "input": ("avg:1", 3),
            "conv1": ("Range(power=2)", 8),
            "conv2": ("Range(power=1),subset:3", 3),
        }
        result = probes.evaluate(loader(), progress=False)
    assert result["conv1"].reduction == "Range(power=2) of BCHW 8x8x8"


def test_a_reduction_of_ones_own_in_a_store(tmp_path: Path) -> None:
    store = extract(tmp_path, Range())
    x = torch.cat([x for x, _ in loader()])
    assert_identical(torch.from_numpy(np.array(store["input"])), ranges(x))
    opened = FeatureStore.open(tmp_path / "store")
    assert opened.reductions["conv1"] == "Range(power=1) of BCHW 8x8x8"
    again = extract(tmp_path, Range(1))
    assert np.array_equal(again["conv1"], store["conv1"])
    more = extract(tmp_path, Range(), layers=("conv1", "conv2"))
    assert more.layers == ("conv1", "conv2")
    assert extract(tmp_path, Doubled(), layers=("fc",)).layers == ("fc",)
    assert extract(tmp_path, "avg", layers=("add",)).layers == ("add",), "fc has nothing to average over"
    fitted = fit_probes(again, l2=0.1, progress=False)
    assert fitted.train["conv1"].features == 8


def test_a_store_is_not_continued_with_another_reduction(tmp_path: Path) -> None:
    extract(tmp_path, Range())
    for other, text in ((Range(2), r"Range\(power=2\)"), ("avg", "avg:1")):
        with pytest.raises(ProbeError, match=rf"reduced by 'Range\(power=1\)', and was asked for.*{text}"):
            extract(tmp_path, other)

    @dataclass(frozen=True)
    class Renamed(Range):
        """Says that it is the other one, and is not."""

        def reduced(self, features: Features) -> Features:
            return Features(super().reduced(features).value + 1, 1)

        def __str__(self) -> str:
            return str(Range(self.power))

    with pytest.raises(ProbeError, match="layer 'input'"):
        extract(tmp_path, Renamed())


def test_a_reduction_that_chooses_among_others() -> None:
    @dataclass(frozen=True)
    class Fine(Reduction):
        """Halves of a map, vectors as they are."""

        def settled(self, features: Features) -> tuple[Reduction, ...]:
            return (Pool("max", 2), Subset(9)) if features.positions else (Flatten(),)

    model, (x, y) = convnet(), images(1)[0]
    with ProbeSet(model, ["conv1", "fc"], CLASSES, reduce=Fine()) as probes:
        model(x)
        probes.step(y)
        assert probes.reductions == {"conv1": ("max:2,subset:9", 9), "fc": ("flatten", CLASSES)}
        described = probes.evaluate(loader(), progress=False)["conv1"].reduction
    assert described == "max:2,subset:9 of BCHW 8x8x8, Fine()"


@dataclass(frozen=True)
class Broken(Reduction):
    made: Any = None

    def bind(self, features: Features, *, name: str, seed: int) -> Callable[[Features], Any]:
        return lambda f: self.made


@dataclass(frozen=True)
class Posing(Reduction):
    def __str__(self) -> str:
        return "avg:2, flatten"


@dataclass(frozen=True)
class Silent(Reduction):
    pass


class Bare(Reduction):
    pass


@dataclass(frozen=True)
class Each(Range):
    by_position: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("reduce", "sentence"),
    [
        (
            Broken(),
            "made NoneType of layer 'conv1'; it has to return Features with one row for each of the 6",
        ),
        (Broken(torch.zeros(6, 2)), "made Tensor of layer 'conv1'"),
        (Broken(Features(torch.zeros(5, 2), 1)), r"made \(5, 2\) of layer 'conv1'"),
        (Broken(Features(torch.zeros(6), 1)), r"made \(6,\) of layer 'conv1'"),
        (Posing(), "the reduction Posing has the text 'avg:2, flatten', which means another one"),
        (Silent(), "Silent does not say how it reduces layer 'conv1'; define its method bind"),
        (Bare(), "the reduction Bare is not a dataclass"),
        (Range, "is not a reduction"),
        ((Each(), Subset(2)), r"the reduction 'Each\(power=1\)' must come last"),
    ],
)
def test_a_reduction_that_cannot_be(reduce: Any, sentence: str) -> None:
    model = convnet()
    with pytest.raises(ProbeError, match=sentence):  # noqa: PT012  # some are refused before the forward
        probes = ProbeSet(model, "conv1", CLASSES, reduce=reduce)
        model(images(1)[0][0])
        probes.step(images(1)[0][1])


def test_a_reduction_that_needs_a_layout_is_refused_where_there_is_none() -> None:
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(192, CLASSES))
    x, y = images(1)[0]
    with ProbeSet(model, "0", CLASSES, reduce=Range()) as probes:
        model(x)
        with pytest.raises(ProbeError, match=r"so 'Range\(power=1\)' has no meaning; say it with layout="):
            probes.step(y)
    with ProbeSet(model, "0", CLASSES, reduce=Range(), layout="BCHW") as probes:
        model(x)
        probes.step(y)
        assert probes.reductions == {"0": ("Range(power=1)", 3)}


# -- a target -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantile(Target):
    """The `q` quantile of a number per row.

    Loss: the pinball loss. Error: fraction of labels above the answer.
    """

    q: float = 0.5
    has_units: ClassVar[bool] = True
    width: int = field(default=1, init=False)

    def check(self, y: torch.Tensor) -> torch.Tensor:
        if y.ndim != 1:
            raise ProbeError(f"Quantile labels are one number per row, not shape {tuple(y.shape)}.")
        return y.double()[:, None]

    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.measure(logits, y)[0], torch.where(y > logits, -self.q, 1 - self.q).to(logits.dtype)

    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        left = y - logits
        return torch.stack([torch.maximum(self.q * left, (self.q - 1) * left), (left > 0).to(left.dtype)])[
            ..., 0
        ]


@dataclass(frozen=True)
class Huber(Target):
    """A number per row, beside its mean as a constant answer; labels below zero do not count."""

    label_dims: ClassVar[int] = 0
    width: int = field(default=1, init=False)
    metrics: tuple[str, ...] = field(default=("loss",), init=False)

    def check(self, y: torch.Tensor) -> torch.Tensor:
        return y.float()

    def counted(self, y: torch.Tensor) -> torch.Tensor:
        return y >= 0

    def loss_and_gradient(self, logits: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.measure(logits, y)[0], (logits - y[:, None]).clamp(-1, 1)

    def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.huber_loss(logits[..., 0], y.expand(logits.shape[:-1]), reduction="none")[None]

    def summary(self, y: torch.Tensor) -> torch.Tensor:
        return torch.tensor([len(y), y.sum()], dtype=torch.float64)

    def majority_error(self, summary: torch.Tensor) -> float:
        return 1.0

    def error(self, found: Mapping[str, tuple[float, float]], summary: torch.Tensor) -> tuple[float, float]:
        mean = float(summary[1] / summary[0])
        return found["loss"][0] / mean, found["loss"][1] / mean


def numbers() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(240, 6, generator=g)
    return x, 1000 + 50 * (x[:, 0] - x[:, 1] + torch.randn(240, generator=g).exp())


def probed(x: torch.Tensor, y: torch.Tensor, steps: int, lr: float, target: Target) -> ProbeResult:
    model = Mlp()
    with ProbeSet(model, "input", targets=target, lr=lr) as probes:
        for _ in range(steps):
            model.train()(x)
            probes.step(y)
        return probes.evaluate([(x[:100], y[:100]), (x[100:], y[100:])], progress=False)


def test_a_target_of_ones_own_is_learnt_as_well_as_by_linear_programming() -> None:
    x, y = numbers()
    result = probed(x, y, 3000, 0.003, Quantile(0.8))
    reading = result["input"]
    best = QuantileRegressor(quantile=0.8, alpha=0).fit(x.double().numpy(), y.double().numpy())
    left = y.double().numpy() - best.predict(x.double().numpy())
    least = np.maximum(0.8 * left, -0.2 * left).mean()
    assert least <= reading.loss * (1 + 1e-6)
    assert reading.loss == pytest.approx(least, rel=0.005)
    assert reading.error == pytest.approx(0.2, abs=0.03)
    assert reading.error_low is not None
    assert 0.1 < reading.error_low < reading.error < (reading.error_high or 0) < 0.3
    (reference,) = result.references
    assert (reference.n, reference.model_error) == (240, None)
    assert math.isnan(reference.majority_error)
    assert str(result).splitlines()[-1] == "valid: 240 rows"


@pytest.mark.parametrize("target", [Quantile(0.3), Huber()])
def test_the_gradient_of_a_target_of_ones_own_is_what_a_probe_follows(target: Target) -> None:
    """One step of gradient descent moves the answers as autograd says: Adam's first step is a sign."""
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 6, generator=g), torch.randn(50, generator=g) * 3 + 2
    checked = target.check(y)
    logits = torch.randn(3, 50, 1, generator=g, requires_grad=True)
    loss, gradient = target.loss_and_gradient(logits.detach(), checked)
    of_measure = target.measure(logits, checked)[0]
    torch.testing.assert_close(loss, of_measure.detach())
    (expected,) = torch.autograd.grad(of_measure.sum(), logits)
    torch.testing.assert_close(gradient, expected)
    # From a zero probe the bias moves by lr against the sign of the mean gradient over rows that count.
    model = Mlp()
    with ProbeSet(model, "input", targets=target, lr=0.01) as probes:
        model(x)
        probes.step(y)
        moved = probes._bank.groups[0].biases[0].item()
    units = (checked - checked.mean(0)) / checked.std(0, unbiased=False) if target.has_units else checked
    _, at_zero = target.loss_and_gradient(torch.zeros(1, 50, 1), units.float())
    assert moved == pytest.approx(
        -0.01 * math.copysign(1, at_zero[0, target.counted(checked)].mean()), rel=1e-3
    )


def test_a_target_with_an_error_of_its_own_and_rows_that_do_not_count() -> None:
    x, y = numbers()
    y = (y - 1000) / 50
    result = probed(x, y, 400, 0.05, Huber())
    reading, counted = result["input"], y >= 0
    assert reading.n == result.references[0].n == int(counted.sum()) < 240
    assert reading.error == pytest.approx(reading.loss / y[counted].double().mean().item(), rel=1e-5)
    assert reading.error_se == pytest.approx(reading.loss_se / y[counted].double().mean().item(), rel=1e-5)
    assert reading.error_high == pytest.approx(reading.error + 1.959964 * reading.error_se, rel=1e-6)
    assert result.references[0].majority_error == 1
    untrained = ProbeSet(Mlp(), "input", targets=Huber()).evaluate([(x, y)], progress=False)
    at_zero = nn.functional.huber_loss(torch.zeros_like(y[counted]), y[counted])
    assert untrained["input"].loss == pytest.approx(at_zero.item(), rel=1e-6)
    assert reading.loss < 0.5 * untrained["input"].loss


def test_a_target_of_ones_own_beside_others_and_its_refusals() -> None:
    x, y = numbers()
    model = Mlp()

    @dataclass(frozen=True)
    class Mute(Quantile):
        metrics: tuple[str, ...] = field(default=("loss",), init=False)

        def measure(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().measure(logits, y)[:1]

    with pytest.raises(ProbeError, match="Mute does not say what its error is"):
        ProbeSet(model, "0", targets=Mute()).evaluate([(x, y)], progress=False)
    probes = ProbeSet(model, "0", targets=Quantile())
    model(x)
    with pytest.raises(ProbeError, match=r"one number per row, not shape \(240, 1\)"):
        probes.step(y[:, None])
    with pytest.raises(ProbeError, match="is no target"):
        ProbeSet(model, "0", targets=Quantile)  # type: ignore[arg-type]


# -- a control ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearestMean(Readout):
    """The class whose mean is nearest; with shrinkages, means are drawn towards zero by such a part."""

    shrinkages: tuple[float | None, ...] = (None,)

    def fit(self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str) -> dict[float | None, Any]:
        totals = torch.zeros(num_classes, rows.size, dtype=torch.float64)
        for block, z in rows.blocks(torch.float64):
            totals.index_add_(0, labels[block], z)
        means = totals / labels.bincount(minlength=num_classes)[:, None]
        return {s: self.nearness((1 - (s or 0)) * means) for s in self.shrinkages}

    def nearness(self, means: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda z: -torch.cdist(z, means).square()

    def losses(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -outputs.gather(1, y[:, None])[:, 0]


def table(seed: int) -> ArrayFeatures:
    x, y = clusters(300, 6, 4, seed=0, noise=1.5)
    rows = np.random.default_rng(seed).permutation(300)[:150]
    return ArrayFeatures({"a": x[rows], "b": x[rows][:, :2]}, y[rows])


def test_a_read_out_of_ones_own_is_scikit_learns() -> None:
    train, test = table(1), table(2)
    found = read_out(NearestMean(), train=train, test=test, progress=False)
    assert list(found) == ["train", "test"]
    for layer in ("a", "b"):
        x = train[layer].astype(float)
        z = (test[layer] - x.mean(0)) / x.std(0)
        model = NearestCentroid().fit(standardised(x), train.labels)
        assert found["test"][layer].error == pytest.approx((model.predict(z) != test.labels).mean())
        loss = ((z - model.centroids_[test.labels]) ** 2).sum(1)
        assert found["test"][layer].loss == pytest.approx(loss.mean(), rel=1e-6)
        assert found["test"][layer].loss_se == pytest.approx(loss.std() / 150**0.5, rel=1e-6)
    assert found["test"].references == nearest_neighbours(train=train, test=test, progress=False).references


def test_validation_rows_choose_the_strength_of_a_read_out_of_ones_own() -> None:
    splits = {"train": table(1), "valid": table(2), "test": table(3)}
    found = read_out(NearestMean((0.9, 0.0, 0.5)), **splits, progress=False)
    alone = {s: read_out(NearestMean((s,)), **splits, progress=False) for s in (0.9, 0.0, 0.5)}
    best = min(alone, key=lambda s: alone[s]["valid"]["a"].loss)
    assert found["test"]["a"] == alone[best]["test"]["a"]
    assert found["test"]["a"].l2 == best
    with pytest.raises(ProbeError, match=r"choosing among 3 strengths .* give valid="):
        read_out(NearestMean((0.9, 0.0, 0.5)), train=splits["train"], test=splits["test"], progress=False)
