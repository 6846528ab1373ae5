"""The bank of probes: its gradients, its independence, its optimum, its state."""

from __future__ import annotations

import io
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from probes import Classification, MultiLabel, ProbeError, ProbeSet, Regression, Target
from probes.features.buffers import Buffers, stacked
from probes.online.bank import Bank, ProbeSpec
from probes.online.labels import Labels

from .models import CLASSES, ConvNet, Mlp, Tagger, assert_identical, images, vectors

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank_of(targets: Mapping[str, Target], features: Mapping[str, torch.Tensor], lrs: Any = (0.03,)) -> Bank:
    bank = Bank(targets, lrs)
    bank.add([ProbeSpec(name, x.shape[-1], tuple(x.shape[1:-1])) for name, x in features.items()], CPU)
    return bank


def advance(bank: Bank, features: Mapping[str, torch.Tensor], y: Any, steps: int = 1) -> Bank:
    for _ in range(steps):
        bank.step(features, Labels(y, bank.targets, CPU))
    return bank


def outputs(bank: Bank, layer: str, x: torch.Tensor) -> torch.Tensor:
    group, i = bank._find(layer)
    weight, bias = group.folded()
    return x.reshape(-1, group.size) @ weight[i].T + bias[i]


TARGETS: dict[str, tuple[Target, torch.Tensor]] = {
    "classes": (Classification(4), torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 1, 0])),
    "ignored": (Classification(4, ignore_index=2), torch.tensor([0, 3, 1, 1, 2, 0, 3, 2, 1, 0])),
    "tags": (MultiLabel(3), torch.randint(0, 2, (10, 3), generator=generator()).float()),
    "numbers": (Regression(2), torch.randn(10, 2, generator=generator()) * 30 + 100),
}


def reference_loss(name: str, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if name == "ignored":
        return F.cross_entropy(output, y, ignore_index=2)
    if name == "classes":
        return F.cross_entropy(output, y)
    if name == "tags":
        return F.binary_cross_entropy_with_logits(output, y.double())
    std = (y - y.mean(0)) / y.std(0, unbiased=False)
    return F.mse_loss(output, std.double())


@pytest.mark.parametrize("chosen", [["classes"], ["ignored"], ["tags"], ["numbers"], list(TARGETS)])
@pytest.mark.parametrize("lrs", [(0.03,), (0.3, 0.01)])
def test_gradients_are_autograds(chosen: list[str], lrs: tuple[float, ...]) -> None:
    """In float64, for every target and rate, at weights that are not zero."""
    g = generator(1)
    features = {"a": torch.randn(10, 6, generator=g) * 3 + 5, "b": torch.randn(10, 6, generator=g)}
    targets = {name: TARGETS[name][0] for name in chosen}
    labels = {name: TARGETS[name][1] for name in chosen}
    bank = advance(bank_of(targets, features, lrs), features, labels, 3)
    (group,) = bank.groups
    x = torch.stack([features["a"], features["b"]])
    moments = group.moments(x, bank._sum)
    group.take_in(*moments)
    bank._set_gradients([(x, ())], Labels(labels, targets, CPU))
    scale = 1 / (group.var.double().sqrt() * math.sqrt(6))
    z = (x.double() - group.mean.double()[:, None]) * scale[:, None]
    for r in range(len(lrs)):
        weight = group.weights[r].double().requires_grad_()
        bias = group.biases[r].double().requires_grad_()
        logits = z @ weight.transpose(1, 2) + bias[:, None]
        blocks = logits.split([target.width for target in targets.values()], dim=2)
        losses = [
            reference_loss(name, block[i], labels[name])
            for name, block in zip(chosen, blocks, strict=True)
            for i in range(2)
        ]
        expected = torch.autograd.grad(torch.stack(losses).sum(), [weight, bias])
        for found, wanted in zip((group.weights[r].grad, group.biases[r].grad), expected, strict=True):
            assert found is not None
            torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-6)


def test_ignored_rows_do_not_exist() -> None:
    g = generator()
    x, y = torch.randn(12, 5, generator=g), torch.randint(0, 3, (12,), generator=g)
    marked = y.clone()
    marked[8:] = -100
    # Standardisation sees all rows, so the hidden rows repeat the others' mean and variance.
    x[8:] = x[:4]
    x[4:8] = x[:4]
    (with_marks,) = advance(bank_of({"y": Classification(3)}, {"a": x}), {"a": x}, marked).groups
    (without,) = advance(bank_of({"y": Classification(3)}, {"a": x[:8]}), {"a": x[:8]}, y[:8]).groups
    torch.testing.assert_close(with_marks.weights[0].grad, without.weights[0].grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(with_marks.biases[0].grad, without.biases[0].grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(with_marks.score, without.score)


def test_probes_together_equal_probes_alone() -> None:
    g = generator()
    features = {
        "a": torch.randn(16, 8, generator=g),
        "b": torch.randn(16, 8, generator=g) * 10,
        "c": torch.randn(16, 3, generator=g),
        "d": torch.randn(16, 8, generator=g),
    }
    y = torch.randint(0, 4, (16,), generator=g)
    targets = {"y": Classification(4)}
    together = advance(bank_of(targets, features), features, y, 20)
    assert len(together.groups) == 2
    for name, x in features.items():
        alone = advance(bank_of(targets, {name: x}), {name: x}, y, 20)
        torch.testing.assert_close(outputs(together, name, x), outputs(alone, name, x), rtol=1e-4, atol=1e-5)


def test_rates_of_a_grid_equal_probes_of_one_rate() -> None:
    batches = vectors(20)
    model = Mlp()
    grid = ProbeSet(model, ["0", "1"], CLASSES, lr=(0.3, 0.01))
    single = ProbeSet(model, ["0", "1"], CLASSES, lr=0.01)
    for x, y in batches:
        model(x)
        grid.step(y)
        single.step(y)
    (group,), (alone,) = grid._bank.groups, single._bank.groups
    torch.testing.assert_close(group.weights[1], alone.weights[0], rtol=1e-4, atol=1e-5)


def problem(rows: int = 400, size: int = 6, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(5)
    x = torch.randn(rows, size, generator=g)
    logits = x @ torch.randn(size, classes, generator=g) + torch.randn(classes, generator=g)
    return x, torch.multinomial(logits.softmax(1), 1, generator=g).squeeze(1)


def test_converges_to_the_logistic_regression_optimum() -> None:
    x, y = problem()
    scaled = x * torch.logspace(-3, 3, 6) + 7
    bank = advance(bank_of({"y": Classification(3)}, {"a": scaled}, (0.1,)), {"a": scaled}, y, 500)
    z = ((scaled.double() - scaled.double().mean(0)) / scaled.double().std(0)).numpy()
    exact = LogisticRegression(C=1e10, max_iter=2000, tol=1e-10).fit(z, y.numpy())
    optimum = F.cross_entropy(torch.from_numpy(exact.decision_function(z)), y)
    found = F.cross_entropy(outputs(bank, "a", scaled).double(), y)
    # Below the optimum by rounding only: the first feature varies by 1e-3 around 7, in float32.
    assert -1e-4 < float(found - optimum) < 1e-3


@given(scale=st.floats(1e-4, 1e4), shift=st.floats(-100, 100))
@settings(max_examples=10, deadline=None)
def test_scale_and_shift_of_features_do_not_matter(scale: float, shift: float) -> None:
    x, y = problem(60)
    moved = (x + shift) * scale
    plain = advance(bank_of({"y": Classification(3)}, {"a": x}), {"a": x}, y, 10)
    other = advance(bank_of({"y": Classification(3)}, {"a": moved}), {"a": moved}, y, 10)
    # float32 holds (x + shift) to about 1e-7 |shift|; the standardised features inherit that.
    tolerance = 1e-4 * (1 + abs(shift))
    torch.testing.assert_close(outputs(plain, "a", x), outputs(other, "a", moved), rtol=0, atol=tolerance)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e6, -3e-9])
def test_constant_features_say_nothing_and_break_nothing(value: float) -> None:
    x, y = problem(60)
    more = torch.cat([x, torch.full((60, 1), value)], 1)
    bank = advance(bank_of({"y": Classification(3)}, {"a": more}), {"a": more}, y, 30)
    weight, bias = bank.groups[0].folded()
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    assert (weight[..., -1] == 0).all()


def test_state_dict_round_trip_continues_to_the_bit() -> None:
    batches = vectors(12)

    def start() -> tuple[Mlp, ProbeSet]:
        torch.manual_seed(3)
        model = Mlp()
        return model, ProbeSet(model, ["0", "1", "3"], CLASSES, lr=(0.1, 0.01))

    model, whole = start()
    for x, y in batches:
        model(x)
        whole.step(y)
    model, first = start()
    for x, y in batches[:5]:
        model(x)
        first.step(y)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    model, second = start()
    second.load_state_dict(torch.load(file, weights_only=True))
    for x, y in batches[5:]:
        model(x)
        second.step(y)
    for a, b in zip(whole._bank.groups, second._bank.groups, strict=True):
        for p, q in zip([*a.weights, *a.biases, a.mean, a.var, a.score],
                        [*b.weights, *b.biases, b.mean, b.var, b.score], strict=True):  # fmt: skip
            assert torch.equal(p, q)
    assert whole.layers == second.layers
    assert str(whole.evaluate(batches, progress=False)) == str(second.evaluate(batches, progress=False))


def test_saved_state_is_not_changed_by_later_steps() -> None:
    model, ((x, y), *_) = Mlp(), vectors(1)
    probes = ProbeSet(model, "0", CLASSES)
    model(x)
    probes.step(y)
    state = probes.state_dict()["bank"]["groups"][0]
    kept = [t.clone() for t in [*state["parameters"], *state["statistics"]]]
    model(x)
    probes.step(y)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, [*state["parameters"], *state["statistics"]], strict=True)
    )


@pytest.mark.parametrize(
    "other", [{"lr": 0.5}, {"seed": 1}, {"num_classes": 9}], ids=["rate", "seed", "classes"]
)
def test_state_of_other_probes_is_refused(other: dict[str, Any]) -> None:
    state = ProbeSet(Mlp(), "0", CLASSES).state_dict()
    with pytest.raises(ProbeError, match="saved probes"):
        ProbeSet(Mlp(), "0", **{"num_classes": CLASSES, **other}).load_state_dict(state)


# -- labels per position ----------------------------------------------------------------------------


def test_labels_of_another_resolution_are_sampled_at_the_nearest_position() -> None:
    y = torch.arange(36).view(1, 6, 6)
    labels = Labels(y, {"y": Classification(36)}, CPU)
    assert labels.rows("y", (3, 2), "x")[0].view(3, 2).tolist() == [[7, 10], [19, 22], [31, 34]]
    assert labels.rows("y", (6, 6), "x")[0].tolist() == list(range(36))
    assert labels.rows("y", (12, 12), "x")[0].view(12, 12)[::2, ::2].tolist() == y[0].tolist()


def test_a_probe_per_position_equals_a_probe_on_the_rows() -> None:
    g = generator()
    x, y = torch.randn(4, 3, 3, 5, generator=g), torch.randint(0, 3, (4, 3, 3), generator=g)
    maps = advance(bank_of({"y": Classification(3)}, {"a": x}), {"a": x}, y, 10)
    rows = x.view(-1, 5)
    flat = advance(bank_of({"y": Classification(3)}, {"a": rows}), {"a": rows}, y.flatten(), 10)
    torch.testing.assert_close(outputs(maps, "a", x), outputs(flat, "a", rows))


def test_padding_is_not_counted() -> None:
    """Tokens behind a packed sequence's end neither train a probe nor are measured."""
    x, lengths = torch.randn(3, 7, 4), torch.tensor([7, 2, 5])
    y = torch.randint(CLASSES, (3, 7))
    valid = torch.arange(7) < lengths[:, None]

    class Output(Tagger):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            super().forward(x, lengths)
            return x

    model = Output(packed=True)
    losses = []
    for labels in (y, torch.where(valid, y, (y + 1) % CLASSES), torch.where(valid, y, -100)):
        with ProbeSet(model, "lstm", CLASSES, reduce="positions") as probes:
            model.lstm.dropout = 0.0
            for _ in range(3):
                model(x)
                probes.step(labels)
            reading = probes.evaluate([(x, labels)], progress=False)["lstm"]
            assert reading.n == 14
            losses.append(reading.loss)
    assert losses[0] == losses[1] == losses[2]


def test_the_number_of_tokens_may_change() -> None:
    model = Tagger(last=False)
    with ProbeSet(model, ["lstm", "head"], CLASSES, reduce="positions") as probes:
        for length in (5, 3, 9):
            model(torch.randn(4, length, 4))
            probes.step(torch.randint(CLASSES, (4, length)))
        result = probes.evaluate([(torch.randn(2, 6, 4), torch.randint(CLASSES, (2, 6)))], progress=False)
        assert [r.n for r in result.readings] == [12, 12]


# -- precision --------------------------------------------------------------------------------------


def test_probes_are_float32_under_autocast() -> None:
    model, batches = ConvNet().eval(), images(4)
    states = []
    for low in (False, True):
        with ProbeSet(model, ["input"], CLASSES) as probes:
            for x, y in batches:
                model.train()(x)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                    probes.step(y)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                result = probes.evaluate(batches, progress=False)
        (group,) = probes._bank.groups
        assert group.weights[0].dtype == torch.float32
        states.append((group.weights[0], result["input"].loss))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_a_default_dtype_does_not_reach_the_probes() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = Mlp()
        with ProbeSet(model, ["0", "3"], CLASSES) as probes:
            for x, y in vectors():
                model(x.double())
                probes.step(y)
            assert probes._bank.groups[0].weights[0].dtype == torch.float32
            assert probes.evaluate([(x.double(), y)], progress=False)["3"].n == len(y)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rarely_active_features_are_not_forgotten() -> None:
    """A pixel that is on in one image of 500 keeps its variance (a short memory made probes explode)."""
    g = generator()
    bank = bank_of({"y": Classification(2)}, {"a": torch.zeros(32, 50)})
    for _ in range(1500):
        x = (torch.rand(32, 50, generator=g) < 0.002).float()
        bank.step({"a": x}, Labels(torch.zeros(32, dtype=torch.int64), bank.targets, CPU))
    ratio = bank.groups[0].var / (0.002 * 0.998)
    assert 0.2 < float(ratio.min()) < float(ratio.max()) < 4


# -- what a step costs ------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    """Counts torch's operations, and the calls of Python and C functions."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def costs(layers: int) -> tuple[Counter[str], Counter[str], int]:
    """Operations of a forward and of a step, and calls in both, once all is known."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers)))
    x, y = vectors(1)[0]
    with ProbeSet(model, "*", CLASSES) as probes:
        for _ in range(12):
            model(x)
            probes.step(y)
        with _Operations() as forward:
            model(x)
        with _Operations() as step:
            probes.step(y)
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            model(x)
            probes.step(y)
        finally:
            sys.setprofile(None)
    return forward.names, step.names, calls


def test_layers_of_one_size_cost_one_copy_each_and_one_product() -> None:
    """A step's operations do not depend on the number of layers; nothing grows faster than that number."""
    (few, few_step, _), (many, many_step, _) = costs(3), costs(30)
    assert many_step == few_step
    assert not {"aten.stack.default", "aten.cat.default"} & {n for n, k in many_step.items() if k > 1}
    assert many["aten.copy_.default"] == 30
    assert not many["aten.clone.default"]
    assert sum(many.values()) - sum(few.values()) <= 27 * 5  # two of which are the layer's own
    calls = [costs(layers)[2] for layers in (20, 40, 80)]
    assert calls[2] - calls[1] <= 2.1 * (calls[1] - calls[0])


def test_stacked_shares_memory_only_where_it_may() -> None:
    whole = torch.randn(3, 4, 5)
    parts = list(whole.unbind())
    assert stacked(parts).data_ptr() == whole.data_ptr()
    assert torch.equal(stacked(parts), whole)
    for odd in (parts[::-1], [parts[0], parts[2]], [parts[0], parts[0]], [parts[0], torch.randn(4, 5)]):
        found = stacked(odd)
        assert torch.equal(found, torch.stack(odd))
        assert found.data_ptr() != whole.data_ptr() or len(odd) == 1
    assert torch.equal(stacked(parts[1:]), whole[1:])
    assert stacked([torch.empty(0, 5)] * 2).shape == (2, 0, 5)


def test_features_of_a_group_lie_together_and_keep_their_place() -> None:
    cpu = torch.device("cpu")
    buffers = Buffers()
    buffers.arrange([["a", "b", "c"], ["d"]])
    first = {name: buffers.of(name, (2, 5), cpu) for name in "abcd"}
    assert stacked([first[name] for name in "abc"]).data_ptr() == first["a"].data_ptr()
    buffers.arrange([["a", "b", "c"], ["d"]])  # the same: nothing happens
    assert all(buffers.of(name, (2, 5), cpu) is first[name] for name in "abcd")
    other = buffers.of("b", (3, 5), cpu)
    assert other.shape == (3, 5)
    assert (
        stacked([buffers.of(name, (3, 5), cpu) for name in "abc"]).data_ptr()
        == buffers.of("a", (3, 5), cpu).data_ptr()
    )
    buffers.arrange([["b", "a"]])
    assert stacked([buffers.of(name, (3, 5), cpu) for name in "ba"]).shape == (2, 3, 5)
    assert buffers.of("e", (1,), cpu).shape == (1,)


def test_a_loaded_state_is_a_copy() -> None:
    """Two sets that continue from one state do not share what their optimizers remember."""
    model, batches = Mlp(), vectors(6)
    probes = ProbeSet(model, ["0", "1"], CLASSES)
    for x, y in batches[:2]:
        model(x)
        probes.step(y)
    state = probes.state_dict()
    ends = []
    for _ in range(2):
        twin = ProbeSet(model, ["0", "1"], CLASSES)
        twin.load_state_dict(state)
        for x, y in batches[2:]:
            model(x)
            twin.step(y)
        ends.append(twin.state_dict())
        twin.detach()
    assert_identical(*ends)


# -- every so many steps ----------------------------------------------------------------------------


def walk(every: int, calls: int, forwards: int = 1, state_at: int | None = None) -> dict[str, Any]:
    """The probes' state after so many calls of step, each after some forwards, perhaps saved and loaded."""
    torch.manual_seed(0)
    model, batches = Mlp(), vectors(12)
    probes = ProbeSet(model, ["0", "1"], CLASSES, every=every)
    for i, (x, y) in enumerate(batches[:calls]):
        if i == state_at:
            state = probes.state_dict()
            probes.detach()
            probes = ProbeSet(model, ["0", "1"], CLASSES, every=every)
            probes.load_state_dict(state)
        for k in range(forwards):
            model(x if k == forwards - 1 else x * 3)
        probes.step(y)
    return probes.state_dict()["bank"]


@pytest.mark.parametrize("forwards", [1, 2, 3, 4])
def test_every_fourth_step_is_training_on_those_batches_alone(forwards: int) -> None:
    """However many forwards come between two calls of step."""
    torch.manual_seed(0)
    model, batches = Mlp(), vectors(12)
    with ProbeSet(model, ["0", "1"], CLASSES) as probes:
        for x, y in (batches[0], batches[4], batches[8]):
            model(x)
            probes.step(y)
        expected = probes.state_dict()["bank"]
    assert expected["steps"] == 3
    for calls in (9, 10, 11, 12):
        assert_identical(walk(4, calls, forwards), expected)


@pytest.mark.parametrize("state_at", [1, 3, 4, 7])
def test_every_goes_on_where_a_saved_state_was(state_at: int) -> None:
    assert_identical(walk(4, 12, state_at=state_at), walk(4, 12))


def test_a_step_that_is_passed_over_computes_nothing() -> None:
    model, (x, y) = Mlp(), vectors(1)[0]
    with ProbeSet(model, ["0", "1"], CLASSES, every=2) as probes:
        model(x)
        probes.step(y)
        unusable = torch.full((8,), 99)  # labels that nobody looks at
        with _Operations() as passed:
            model(x)
            probes.step(unusable)
        twin = Mlp()
        with _Operations() as bare:
            twin(x)
        assert passed.names == bare.names
        with pytest.raises(ProbeError, match="needs a training forward"):
            probes.step(y)  # due, and nothing was read since
        model(x)
        probes.step(y)
        with torch.no_grad():
            model(x)
        with pytest.raises(ProbeError, match="needs a training forward"):
            probes.step(y)  # not due, but there was no training forward either
        model(x)
        probes.step(y)
        assert probes.evaluate([(x, y)], progress=False)["0"].steps == 2


def test_a_step_that_fails_stays_due() -> None:
    model, (x, y) = Mlp(), vectors(1)[0]
    with ProbeSet(model, ["0"], CLASSES, every=3) as probes:
        model(x)
        with pytest.raises(ProbeError, match="out of range"):
            probes.step(torch.full((8,), 99))
        model(x)
        probes.step(y)
        assert probes.state_dict()["bank"]["steps"] == 1
