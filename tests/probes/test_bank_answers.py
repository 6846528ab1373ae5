"""The bank against plain float64 formulas, step by step: what a small change of its code would break."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from probes import Classification, MultiLabel, ProbeError, Regression
from probes.mean_se import Tally
from probes.online.bank import Bank, ProbeSpec
from probes.online.early_stopping import EarlyStopping
from probes.online.labels import Labels
from probes.online.stacked import Group

CPU = torch.device("cpu")
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # Adam's


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plain:
    """One softmax regression on standardised features, by the formulas, in float64."""

    def __init__(self, size: int, classes: int, lr: float) -> None:
        self.lr, self.size, self.steps = lr, size, 0
        self.mean, self.var = torch.zeros(size).double(), torch.ones(size).double()
        self.theta = torch.zeros(classes, size + 1).double()
        self.m, self.v = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.score = math.inf

    def z(self, x: torch.Tensor) -> torch.Tensor:
        constant = self.var <= (1e-6 * self.mean) ** 2
        scale = torch.where(constant, 0.0, 1 / (self.var * self.size).sqrt())
        return torch.cat([(x.double() - self.mean) * scale, torch.ones(len(x), 1).double()], 1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.z(x) @ self.theta.T

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        k = self.steps
        if k < 10 or k % 10 == 0:
            updates = k if k < 10 else 9 + k // 10
            w = max(1 / (updates + 1), 0.01)
            mean, var = x.double().mean(0), x.double().var(0, unbiased=False)
            spread = w * (1 - w) * (mean - self.mean) ** 2 if k else 0
            self.var = (1 - w) * self.var + w * var + spread
            self.mean = (1 - w) * self.mean + w * mean
        counted = y != -100
        p = self.logits(x).softmax(1)
        loss = -p[counted, y[counted]].log().mean()
        d = p - F.one_hot(y.clamp(min=0), len(self.theta))
        gradient = (d * counted[:, None]).T @ self.z(x) / counted.sum()
        self.m = BETA1 * self.m + (1 - BETA1) * gradient
        self.v = BETA2 * self.v + (1 - BETA2) * gradient**2
        t = k + 1
        self.theta -= self.lr * (self.m / (1 - BETA1**t)) / ((self.v / (1 - BETA2**t)).sqrt() + EPS)
        self.score = float(loss) if math.isinf(self.score) else 0.98 * self.score + 0.02 * float(loss)
        self.steps += 1


def moving_batches(steps: int, size: int, rows: int = 9) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches whose mean and scale move, as a model's features do; some labels do not count."""
    g = generator(3)
    found = []
    for k in range(steps):
        x = torch.randn(rows, size, generator=g) * (1 + 0.05 * k) + 0.3 * k
        x[:, 0] = 7.0  # says nothing
        y = torch.randint(4, (rows,), generator=g)
        y[0] = -100
        found.append((x, y))
    return found


@pytest.mark.parametrize("size", [5, 40])  # fewer and more numbers in a row than weights
@pytest.mark.parametrize("rows", [2, 9])
def test_steps_are_those_of_the_formulas(size: int, rows: int) -> None:
    rates = (0.1, 0.004)
    bank = Bank({"y": Classification(4)}, rates)
    bank.add([ProbeSpec("a", size), ProbeSpec("b", size)], CPU)
    plain = {(layer, r): Plain(size, 4, lr) for layer in "ab" for r, lr in enumerate(rates)}
    batches = moving_batches(34, size, rows)
    for x, y in batches:
        features = {"a": x, "b": x.flip(1) * 3 - 1}
        bank.step(features, Labels(y, bank.targets, CPU))
        for (layer, _), one in plain.items():
            one.step(features[layer], y)
    (group,) = bank.groups
    weight, bias = group.folded()
    for (layer, r), one in plain.items():
        i, x = "ab".index(layer), features[layer]
        torch.testing.assert_close(group.mean[i].double(), one.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(group.var[i].double(), one.var, rtol=1e-4, atol=1e-5)
        block = slice(4 * r, 4 * r + 4)
        found = x.double() @ weight[i, block].double().T + bias[i, block].double()
        torch.testing.assert_close(found, one.logits(x), rtol=2e-3, atol=2e-3)
        assert float(group.score[i, r]) == pytest.approx(one.score, rel=1e-4)
        assert bank.steps_of(layer) == one.steps == 34
    scores = [plain["a", r].score for r in range(2)]
    assert bank.best_lr("a", "y") == scores.index(min(scores))


@pytest.mark.parametrize("steps", [0, 1, 2, 9, 10, 20, 90, 890, 900, 910, 5000])
def test_statistics_forget_slowly(steps: int) -> None:
    """Equal weights for the first hundred updates, then a hundredth for each."""
    group = Group(["a", "b"], 3, (), 2, 1, 1, CPU)
    g = generator(1)
    old_mean, old_var, mean, var = (torch.rand(2, 3, generator=g) + 0.5 for _ in range(4))
    group.steps, group.mean, group.var = steps, old_mean.clone(), old_var.clone()
    group.fault[1] = True
    assert group.is_due()
    group.take_in(mean, var)
    updates = steps if steps < 10 else 9 + steps // 10
    w = max(1 / (1 + updates), 0.01)
    spread = w * (1 - w) * (mean - old_mean) ** 2 * (steps > 0)
    torch.testing.assert_close(group.mean[0], (old_mean + w * (mean - old_mean))[0])
    torch.testing.assert_close(group.var[0], ((1 - w) * old_var + w * var + spread)[0])
    assert torch.equal(group.mean[1], old_mean[1])  # at fault: as it was
    assert torch.equal(group.var[1], old_var[1])


def test_statistics_are_looked_at_ten_times_and_then_every_tenth() -> None:
    group = Group(["a"], 3, (), 2, 1, 1, CPU)
    due = []
    for group.steps in range(41):
        due += [group.steps] if group.is_due() else []
    assert due == [*range(11), 20, 30, 40]


def test_moments_of_rows_that_do_not_fit_the_cache() -> None:
    x = torch.randn(1, 5, 100_000, generator=generator()) * 3 + 2
    group = Group(["a"], 100_000, (), 2, 1, 1, CPU)
    mean, var = group.moments(x, lambda value: value)
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(var, x.var(1, unbiased=False))
    assert not group.fault.any()
    both = torch.stack([x[0, :, :7], x[0, :, 7:14]])
    both[1, 2, 3] = math.inf
    pair = Group(["a", "b"], 7, (), 2, 1, 1, CPU)
    pair.fault[0] = True  # it is noted until somebody asks
    pair.moments(both, lambda value: value)
    assert pair.fault.tolist() == [True, True]


def test_features_that_vary_less_than_a_millionth_of_their_mean_are_constant() -> None:
    group = Group(["a"], 4, (), 2, 1, 1, CPU)
    group.mean = torch.tensor([[1e3, 1e3, 0.0, -1e3]])
    group.var = torch.tensor([[0.9e-6, 1.1e-6, 0.0, 0.9e-6]])
    assert group._scale().tolist()[0] == pytest.approx([0, 1 / math.sqrt(4 * 1.1e-6), 0, 0])
    weight, bias = torch.randn(1, 2, 4), torch.randn(1, 2)
    group.unfold(weight, bias)
    assert (group.weights[0][0, :, [0, 2, 3]] == 0).all()
    folded, constant = group.folded()
    torch.testing.assert_close(folded[..., 1], weight[..., 1])
    assert not folded[..., [0, 2, 3]].any()
    # What constant features added stays in the bias.
    torch.testing.assert_close(
        constant, bias + (weight * group.mean)[..., [0, 2, 3]].sum(-1), rtol=1e-4, atol=1e-2
    )


def test_unfolding_undoes_folding_at_every_rate() -> None:
    group = Group(["a", "b"], 6, (), 3, 2, 1, CPU)
    g = generator()
    group.mean, group.var = torch.randn(2, 6, generator=g), torch.rand(2, 6, generator=g) + 0.1
    weight, bias = torch.randn(2, 6, 6, generator=g), torch.randn(2, 6, generator=g)
    group.unfold(weight, bias)
    found = group.folded()
    torch.testing.assert_close(found[0], weight)
    torch.testing.assert_close(found[1], bias)
    scale = 1 / (group.var * 6).sqrt()
    torch.testing.assert_close(group.weights[1], weight[:, 3:] / scale[:, None])
    torch.testing.assert_close(group.biases[0], bias[:, :3] + (weight[:, :3] * group.mean[:, None]).sum(-1))


@pytest.mark.parametrize(
    ("size", "rows", "outputs"), [(8, 2, 5), (8, 9, 3), (4096, 3, 2), (4096, 2, 7), (5000, 3, 2)]
)
def test_products_and_gradients_in_every_form(size: int, rows: int, outputs: int) -> None:
    """Rewritten rows or folded weights, whole or cut in parts: W z + b and its gradients."""
    g = generator(2)
    group = Group(["a", "b"][: 1 if size > 8 else 2], size, (), outputs, 1, 1, CPU)
    count = len(group.layers)
    group.mean, group.var = torch.randn(count, size, generator=g), torch.rand(count, size, generator=g) + 0.1
    group.weights[0].copy_(torch.randn(count, outputs, size, generator=g))
    group.biases[0].copy_(torch.randn(count, outputs, generator=g))
    x = torch.randn(count, rows, size, generator=g) * 2 + 1
    d = torch.randn(count, rows, outputs, generator=g)
    z = (x - group.mean[:, None]).double() / (group.var.double() * size).sqrt()[:, None]
    terms = group.terms(x)
    expected = z @ group.weights[0].double().transpose(1, 2) + group.biases[0].double()[:, None]
    torch.testing.assert_close(terms.logits().double(), expected, rtol=1e-4, atol=1e-4)
    group.set_gradients(terms, d, lambda value: value)
    torch.testing.assert_close(
        group.weights[0].grad.double(), d.double().transpose(1, 2) @ z, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(group.biases[0].grad, d.sum(1))
    one = group.terms(x[-1:], [count - 1])
    torch.testing.assert_close(one.logits()[0].double(), expected[-1], rtol=1e-4, atol=1e-4)


def test_losses_are_averaged_over_fifty_steps() -> None:
    group = Group(["a", "b"], 3, (), 2, 1, 2, CPU)
    group.note_losses(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))
    assert group.score.tolist() == [[1.0, math.inf], [2.0, 3.0]]
    group.note_losses(torch.tensor([[2.0, 5.0], [math.inf, 3.0]]))
    assert group.score.tolist() == [[pytest.approx(1.02), 5.0], [2.0, pytest.approx(3.0)]]


def test_which_layers_form_a_group() -> None:
    bank = Bank({"y": Classification(3)}, (0.1,))
    sizes = {"a": 4096, "b": 4097, "c": 4096, "d": 4097, "e": 8}
    bank.add([ProbeSpec(layer, size) for layer, size in sizes.items()], CPU)
    bank.add([ProbeSpec("f", 8, (2, 2)), ProbeSpec("g", 8)], CPU)
    assert [group.layers for group in bank.groups] == [["a", "c"], ["b"], ["d"], ["e"], ["f"], ["g"]]
    assert list(bank.specs) == ["a", "c", "b", "d", "e", "f", "g"]
    assert bank.specs["f"] == ProbeSpec("f", 8, (2, 2))
    assert all(w.shape == (len(g.layers), 3, g.size) for g in bank.groups for w in g.weights)
    assert all(g.weights[0].dtype == g.mean.dtype == torch.float32 for g in bank.groups)


def test_layers_that_part_are_refused() -> None:
    bank = Bank({"y": Classification(3)}, (0.1,))
    bank.add([ProbeSpec("a", 4, (2,)), ProbeSpec("b", 4, (2,))], CPU)
    features = {"a": torch.zeros(2, 2, 4), "b": torch.zeros(2, 3, 4)}
    with pytest.raises(ProbeError, match=r"layers 'a' and 'b' .* have \(2,\) and \(3,\)"):
        bank.step(features, Labels(torch.zeros(2, 2, dtype=torch.long), bank.targets, CPU))
    assert bank.steps == 0


@pytest.mark.parametrize("steps", [1, 11])  # at which statistics are looked at, and are not
def test_faults_name_their_layers_once(steps: int) -> None:
    bank = Bank({"y": Classification(3)}, (0.1,))
    bank.add([ProbeSpec(layer, 4) for layer in "abcdef"] + [ProbeSpec("z", 5)], CPU)
    y = torch.tensor([0, 1, 2])
    good = {layer: torch.randn(3, 4, generator=generator(i)) for i, layer in enumerate("abcdef")}
    good["z"] = torch.randn(3, 5, generator=generator(9))
    for _ in range(steps):
        bank.step(good, Labels(y, bank.targets, CPU))
    good["a"] = good["a"] * 2 + 1  # beside a layer at fault a healthy one stays as it was, too
    before = [
        w.clone() for group in bank.groups for w in [*group.weights, group.mean, group.var, group.score]
    ]
    bad = {**good, **{layer: good[layer] * math.nan for layer in "bcdef"}}
    with pytest.raises(ProbeError, match=r"layer 'b' are NaN .* \(and those of 4 more: c, d, e\)"):
        bank.step(bad, Labels(y, bank.targets, CPU))
    with pytest.raises(ProbeError, match=r"layer 'z' are NaN or infinite; its"):
        bank.step({**good, "z": good["z"] / 0}, Labels(y, bank.targets, CPU))
    tallies: dict[Any, Tally] = {}
    with pytest.raises(ProbeError, match=r"layer 'f' are NaN or infinite; its"):
        bank.measure({"e": good["e"], "f": bad["f"]}, Labels(y, bank.targets, CPU), tallies)
    after = [w for group in bank.groups for w in [*group.weights, group.mean, group.var, group.score]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert bank.steps == steps
    bank.step(good, Labels(y, bank.targets, CPU))
    assert bank.steps == steps + 1


def test_measuring_some_layers_of_a_group_with_two_rates_and_targets() -> None:
    targets = {"y": Classification(6), "t": MultiLabel(2), "r": Regression(1)}
    bank = Bank(targets, (0.1, 0.01))
    g = generator(4)
    features = {layer: torch.randn(20, 4, generator=g) for layer in "abc"}
    bank.add([ProbeSpec(layer, 4) for layer in "abc"], CPU)
    labels = {
        "y": torch.randint(6, (20,), generator=g),
        "t": torch.randint(0, 2, (20, 2), generator=g).float(),
        "r": torch.randn(20, generator=g) * 9 + 500,
    }
    for _ in range(12):
        bank.step(features, Labels(labels, targets, CPU))
    tallies: dict[Any, Tally] = {}
    bank.measure({"c": features["c"], "a": features["a"]}, Labels(labels, targets, CPU), tallies)
    assert set(tallies) == {(layer, name) for layer in "ac" for name in targets}
    (group,) = bank.groups
    weight, bias = group.folded()
    shift, scale = bank._units["r"]
    assert float(shift) == pytest.approx(labels["r"].mean().item(), rel=1e-6)
    assert float(scale) == pytest.approx(labels["r"].std(unbiased=False).item(), rel=1e-6)
    for layer, i in (("a", 0), ("c", 2)):
        out = features[layer].double() @ weight[i].double().T + bias[i].double()
        for r in range(2):
            y, t, number = out[:, 9 * r : 9 * r + 9].split([6, 2, 1], 1)
            means = {name: tallies[layer, name].means()[0][r].tolist() for name in targets}
            top5 = (y.topk(5).indices != labels["y"][:, None]).all(1).double().mean().item()
            wrong = (y.argmax(1) != labels["y"]).double().mean().item()
            loss = F.cross_entropy(y, labels["y"]).item()
            assert means["y"] == pytest.approx([loss, wrong, top5], rel=1e-4)
            loss = F.binary_cross_entropy_with_logits(t, labels["t"].double()).item()
            wrong = ((t > 0) != (labels["t"] > 0)).double().mean().item()
            assert means["t"] == pytest.approx([loss, wrong], rel=1e-4)
            square = (number[:, 0] * scale + shift - labels["r"]).square().mean().item()
            assert means["r"] == pytest.approx([square], rel=1e-4)
    group.score[1] = torch.tensor([5.0, 1.0, 7.0, 4.0, 2.0, 8.0])  # (rate, target)
    assert [bank.best_lr("b", name) for name in targets] == [1, 0, 0]


def test_a_number_that_never_changes_has_no_unit_of_its_own() -> None:
    bank = Bank({"y": Regression()}, (0.1,))
    bank.add([ProbeSpec("a", 2)], CPU)
    x = torch.randn(5, 2, generator=generator())
    bank.step({"a": x}, Labels(torch.full((5,), 3.0), bank.targets, CPU))
    assert bank._units["y"].tolist() == [[3.0], [1.0]]
    assert bank.centred("y", torch.tensor([[5.0]])).tolist() == [[2.0]]
    assert bank.centred("z", torch.tensor([[5.0]])).tolist() == [[5.0]]


def test_faulty_labels_are_named_once_and_change_nothing() -> None:
    """As a GPU notes them, which is not asked at every step."""
    bank = Bank({"y": Classification(3)}, (0.1,))
    bank.add([ProbeSpec("a", 4)], CPU)
    x, y = torch.randn(3, 4, generator=generator()), torch.tensor([0, 1, 2])
    labels = Labels(y, bank.targets, CPU)
    labels.fault |= True
    with pytest.raises(ProbeError, match="out of range"):
        bank.step({"a": x}, labels)
    assert bank.steps == 0
    assert not bank.groups[0].weights[0].any()
    bank.step({"a": x}, Labels(y, bank.targets, CPU))
    assert bank.steps == 1


def test_units_go_where_the_labels_are() -> None:
    """The meta device stands for a second one."""
    bank = Bank({"y": Regression()}, (0.1,))
    bank.add([ProbeSpec("a", 2)], CPU)
    x = torch.randn(5, 2, generator=generator())
    bank.step({"a": x}, Labels(torch.arange(5.0), bank.targets, CPU))
    elsewhere = torch.zeros(3, 1, device="meta")
    assert bank._standard("y", elsewhere).device == bank.centred("y", elsewhere).device == elsewhere.device


def test_early_stopping_keeps_the_best_of_each_probe() -> None:
    """Better, worse, worse, then better still: with patience 2 the last does not count."""
    bank = Bank({"y": Classification(2)}, (0.1, 0.2))
    bank.add([ProbeSpec("a", 3), ProbeSpec("b", 3)], CPU)
    (group,) = bank.groups
    stopping = EarlyStopping(bank, 2)
    stops, weights = [], []
    # Losses (a, b) x (rates): a's first rate improves at rounds 0 and 3, its second always; b's never again.
    for k, losses in enumerate([((5, 9), (1, 1)), ((6, 8), (2, 2)), ((5, 7), (1, 3)), ((1, 6), (0, 0))]):
        for w in group.weights:
            w.fill_(k + 1)
        weights.append(group.folded()[0].clone())
        given = {("a", "y"): torch.tensor(losses[0]).double(), ("b", "y"): torch.tensor(losses[1]).double()}
        stops.append(stopping.update(given))
    assert stops == [False, False, False, False]
    stopping.restore()
    found = group.folded()[0]
    torch.testing.assert_close(found[0, :2], weights[0][0, :2])
    torch.testing.assert_close(found[0, 2:], weights[3][0, 2:])
    torch.testing.assert_close(found[1], weights[0][1])
    assert group.score.tolist() == [[5, 6], [1, 1]]
    assert stopping.update({key: value + 99 for key, value in given.items()}) is False
    assert stopping.update({key: value + 99 for key, value in given.items()}) is True


def test_ratio_of_sums_and_its_standard_error() -> None:
    """sum (s_i - m n_i)^2 / (sum n_i)^2 under the root, written out."""
    g = generator(6)
    values, counted = torch.rand(2, 30, 4, generator=g), torch.rand(30, 4, generator=g) < 0.6
    tally = Tally()
    for part in (slice(0, 11), slice(11, 30)):
        tally.add(values[:, part], counted[part])
    n = counted.double().sum(1)
    for k in range(2):
        s = (values[k].double() * counted).sum(1)
        m = s.sum() / n.sum()
        assert float(tally.means()[0][k]) == pytest.approx(float(m))
        expected = ((s - m * n) ** 2).sum().sqrt() / n.sum()
        assert float(tally.means()[1][k]) == pytest.approx(float(expected))
    assert float(tally.rows) == float(n.sum())


def test_sums_follow_the_rows_to_their_device() -> None:
    """The meta device stands for a second one."""
    tally = Tally()
    for device in ("cpu", "meta"):
        tally.add(torch.rand(2, 3, 4, device=device), torch.ones(3, 4, dtype=torch.bool, device=device))
        assert tally._sums is not None
        for part in (tally.rows, tally._examples, tally._rows_square, tally._sums):
            assert (part.device.type, part.dtype) == (device, torch.float64)


def stepped(steps: int, state: Any = None) -> Bank:
    bank = Bank({"y": Classification(4)}, (0.1, 0.02))
    if state is None:
        bank.add([ProbeSpec("a", 5), ProbeSpec("b", 5)], CPU)
    else:
        bank.load_state_dict(state, CPU)
    for x, y in moving_batches(steps + bank.steps, 5)[bank.steps :]:
        bank.step({"a": x, "b": x * 2}, Labels(y, bank.targets, CPU))
    return bank


def test_a_state_goes_on_with_all_that_it_remembers() -> None:
    whole, state = stepped(9), stepped(4).state_dict()
    found = stepped(5, state)
    for one, other in zip(whole.groups, found.groups, strict=True):
        assert one.layers == other.layers
        for a, b in zip(
            [*one.weights, *one.biases, one.mean, one.score],
            [*other.weights, *other.biases, other.mean, other.score],
            strict=True,
        ):
            assert torch.equal(a, b)
    assert found.steps == found.groups[0].steps == 9
    assert found.specs == whole.specs
    fresh = Bank({"y": Classification(4)}, (0.1, 0.02))
    fresh.add([ProbeSpec("a", 5)], CPU)
    untrained = fresh.state_dict()
    assert [set(m) for m in untrained["groups"][0]["moments"]] == [set()] * 4
    fresh.load_state_dict(untrained, CPU)
    assert fresh.steps == 0


def test_a_state_goes_to_the_device_of_the_model() -> None:
    """The meta device stands for a second one."""
    bank = Bank({"y": Regression()}, (0.1,))
    bank.add([ProbeSpec("a", 2)], CPU)
    x = torch.randn(5, 2, generator=generator())
    bank.step({"a": x}, Labels(torch.arange(5.0), bank.targets, CPU))
    moved = Bank(bank.targets, (0.1,))
    moved.load_state_dict(bank.state_dict(), torch.device("meta"))
    (group,) = moved.groups
    assert moved._optimizer is not None
    remembered = [value for moments in moved._optimizer.state.values() for value in moments.values()]
    assert len(remembered) == 6
    statistics = [group.mean, group.var, group.score, group.fault]
    for tensor in [*group.weights, *group.biases, *statistics, *remembered, moved._units["y"]]:
        assert tensor.device.type == "meta"


def test_early_stopping_of_loaded_probes_leaves_the_saved_state_alone() -> None:
    state = stepped(2).state_dict()
    saved = [*state["groups"][0]["statistics"], *state["groups"][0]["parameters"]]
    kept = [tensor.clone() for tensor in saved]
    bank = stepped(0, state)
    stopping = EarlyStopping(bank, 1)
    stopping.update({(layer, "y"): torch.tensor([7.0, 8.0]).double() for layer in "ab"})
    bank.groups[0].unfold(*(tensor + 1 for tensor in bank.groups[0].folded()))
    stopping.restore()
    assert bank.groups[0].score.tolist() == [[7, 8]] * 2
    assert all(torch.equal(a, b) for a, b in zip(saved, kept, strict=True))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lrs": [0.1, 0.3]}, "learning rates"),
        ({"widths": [5]}, "outputs"),
        ({"groups": None}, "damaged"),
        (None, "no state of a ProbeSet"),
    ],
)
def test_a_state_of_something_else_is_refused(change: Any, sentence: str) -> None:
    bank = stepped(2)
    state = bank.state_dict()
    with pytest.raises(ProbeError, match=sentence):
        bank.load_state_dict(5 if change is None else {**state, **change}, CPU)
    with pytest.raises(ProbeError, match="no state of a ProbeSet"):
        bank.load_state_dict({key: state[key] for key in ("steps", "groups")}, CPU)
    group = state["groups"][0]
    with pytest.raises(ProbeError, match="damaged"):
        bank.load_state_dict({**state, "groups": [{**group, "statistics": [torch.zeros(1)] * 3}]}, CPU)
    assert bank.steps == 2
    bank.load_state_dict(state, CPU)
