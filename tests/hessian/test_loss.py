"""The loss is the loss: exact means, exact derivatives, whatever the batches."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hessian import ForwardReverse, HessianError, Loss, ReverseReverse, fixed_subset
from hessian.empirical_risk.memory import default_limit, ran_out

from .cases import CASES, Case, dense


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_value_and_gradient_are_those_of_one_batch(case: Case) -> None:
    value, gradient, _ = dense(case, case.model())
    loss = case.loss()
    assert loss.value() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(loss.gradient(), gradient, atol=1e-12)
    assert loss.examples == 17


def test_unequal_batches_count_by_their_examples() -> None:
    case = CASES[0]
    whole = Loss(case.model(), F.cross_entropy, case.batches((256,)))
    x, y = case.batches((256,))[0]
    ragged = Loss(case.model(), F.cross_entropy, [(x[:250], y[:250]), (x[250:], y[250:])])
    assert ragged.value() == pytest.approx(whole.value(), rel=1e-13)
    np.testing.assert_allclose(ragged.hessian() @ np.eye(43), whole.hessian() @ np.eye(43), atol=1e-14)


@pytest.mark.parametrize("mode", ["forward_reverse", "reverse_reverse", "retained", "linearized", None])
def test_every_mode_gives_the_dense_hessian(case: Case, mode: str | None) -> None:
    _, _, matrix = dense(case, case.model())
    loss = case.loss()
    if mode == "forward_reverse" and case.loss_fn is F.mse_loss:
        with pytest.raises(HessianError, match="does not work for this loss"):  # torch lacks this derivative
            loss.hessian(mode)
        return
    np.testing.assert_allclose(loss.hessian(mode) @ np.eye(loss.size), matrix, atol=1e-12)


def test_block_of_parameters_is_a_block_of_the_hessian() -> None:
    case = CASES[2]
    _, _, matrix = dense(case, case.model())
    loss = case.loss(parameters=["3.*"])
    start = sum(p.numel() for name, p in case.model().named_parameters() if name < "3")
    block = slice(start, start + loss.size)
    assert list(loss.layout) == ["3.weight", "3.bias"]
    np.testing.assert_allclose(loss.hessian() @ np.eye(loss.size), matrix[block, block], atol=1e-12)


def test_gauss_newton_and_functional_hessian_add_up_to_the_hessian(case: Case) -> None:
    _, _, matrix = dense(case, case.model())
    loss = case.loss()
    gauss_newton = loss.gauss_newton() @ np.eye(loss.size)
    np.testing.assert_allclose(
        gauss_newton + loss.functional_hessian() @ np.eye(loss.size), matrix, atol=1e-12
    )
    np.testing.assert_allclose(gauss_newton, gauss_newton.T, atol=1e-12)
    assert np.linalg.eigvalsh(gauss_newton).min() > -1e-12


def test_gauss_newton_of_a_linear_model_is_its_hessian() -> None:
    case = Case("linear", lambda: nn.Linear(4, 3), (4,))
    loss = case.loss()
    _, _, matrix = dense(case, case.model())
    np.testing.assert_allclose(loss.gauss_newton("forward_reverse") @ np.eye(15), matrix, atol=1e-14)
    np.testing.assert_allclose(loss.functional_hessian() @ np.eye(15), 0, atol=1e-14)


def test_analytic_hessian_of_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    loss = Loss(nn.Linear(3, 1, bias=False).double(), F.mse_loss, (x, y))
    np.testing.assert_allclose(loss.hessian() @ np.eye(3), (2 * x.T @ x / 40).numpy(), atol=1e-14)


def test_weight_decay_is_part_of_loss_gradient_and_hessian() -> None:
    case = CASES[0]
    plain, decayed = case.loss(), case.loss(weight_decay=0.3)
    theta = torch.nn.utils.parameters_to_vector(case.model().parameters()).detach().numpy()
    assert decayed.value() == pytest.approx(plain.value() + 0.15 * theta @ theta, rel=1e-13)
    np.testing.assert_allclose(decayed.gradient(), plain.gradient() + 0.3 * theta, atol=1e-13)
    eye = np.eye(plain.size)
    np.testing.assert_allclose(decayed.hessian() @ eye, plain.hessian() @ eye + 0.3 * eye, atol=1e-13)
    np.testing.assert_allclose(
        decayed.functional_hessian() @ eye, plain.functional_hessian() @ eye, atol=1e-13
    )


def test_float32_model_computes_in_float64_on_request_and_stays_as_it_is() -> None:
    case = CASES[0]
    model = case.model(torch.float32)
    batches = case.batches(dtype=torch.float32)
    _, _, matrix = dense(case, case.model(torch.float32).double())
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    cast = Loss(model, F.cross_entropy, (x.double(), y), dtype=torch.float64).hessian() @ np.eye(43)
    own = Loss(model, F.cross_entropy, batches).hessian() @ np.eye(43)
    assert own.dtype == np.float32
    assert cast.dtype == np.float64
    assert next(model.parameters()).dtype == torch.float32
    np.testing.assert_allclose(own, cast, atol=1e-6)
    np.testing.assert_allclose(cast, matrix, atol=1e-6)  # the data were rounded to float32


def test_batches_are_split_to_fit_the_memory_with_the_same_result() -> None:
    case = CASES[2]
    whole = case.loss()
    small = case.loss(memory_limit=10_000)
    seen: list[int] = []
    small._passes.each(lambda batch, n: seen.append(n))
    assert max(seen) < 7
    assert sum(seen) == 17
    eye = np.eye(whole.size)
    np.testing.assert_allclose(small.hessian() @ eye, whole.hessian() @ eye, atol=1e-14)


def test_modes_that_keep_much_are_not_taken_beyond_the_memory_limit() -> None:
    case = CASES[2]
    choice = case.loss(memory_limit=2_000).hessian().choice
    assert choice.mode in (ForwardReverse(), ReverseReverse())
    assert "would keep" in choice.refused["retained"]
    assert "would keep" in choice.refused["linearized"]


def test_memory_that_runs_out_splits_the_batch_and_counts_each_example_once() -> None:
    case = CASES[0]
    plain = Loss(case.model(), F.cross_entropy, case.batches((2, 7, 8))).value()

    def greedy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return F.cross_entropy(model(batch[0]), batch[1])

    split = Loss(case.model(), None, case.batches((2, 7, 8)), batch_loss=greedy)
    assert split.examples == 17
    assert split.value() == pytest.approx(plain, rel=1e-13)


def test_dict_batches_and_models_that_return_their_loss() -> None:
    case = CASES[0]
    batches = [{"x": x, "y": y, "name": "one"} for x, y in case.batches()]
    loss = Loss(
        case.model(), None, batches, batch_loss=lambda model, b: F.cross_entropy(model(b["x"]), b["y"])
    )
    _, gradient, matrix = dense(case, case.model())
    np.testing.assert_allclose(loss.gradient(), gradient, atol=1e-12)
    np.testing.assert_allclose(loss.hessian() @ np.eye(43), matrix, atol=1e-12)
    with pytest.raises(HessianError, match="needs the model's outputs"):
        loss.gauss_newton()


def test_count_says_what_the_mean_is_over() -> None:
    """A mean over tokens, of which sequences have different numbers."""
    model = nn.Linear(4, 3).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (9, 5), generator=generator)
    y[torch.rand(9, 5, generator=generator) < 0.4] = -100

    def token_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    with pytest.raises(HessianError, match="no mean over examples"):
        Loss(model, None, batches, batch_loss=token_loss)
    loss = Loss(model, None, batches, batch_loss=token_loss, count=lambda b: int((b[1] >= 0).sum()))
    assert loss.value() == pytest.approx(token_loss(model, (x, y)).item(), rel=1e-13)


def test_everything_is_left_as_it_was() -> None:
    case = CASES[3]
    model = case.model()
    model.train()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    modes = [module.training for module in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*case.batches(), strict=True)))
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(5))
    order = loader.generator.get_state()
    loss = Loss(model, F.cross_entropy, loader)
    loss.gradient()
    for mode in ("reverse_reverse", None):
        _ = loss.hessian(mode) @ np.ones(loss.size)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loader.generator.get_state(), order)
    assert torch.are_deterministic_algorithms_enabled() is False


def test_weights_are_read_at_each_call_and_an_operator_keeps_its_own() -> None:
    case = CASES[0]
    model = case.model()
    loss = Loss(model, F.cross_entropy, case.batches())
    eye = np.eye(loss.size)
    operator = loss.hessian("forward_reverse")
    before = operator @ eye
    with torch.no_grad():
        model[0].weight += 1
    np.testing.assert_array_equal(operator @ eye, before)
    _, gradient, matrix = dense(case, model)
    np.testing.assert_allclose(loss.gradient(), gradient, atol=1e-12)
    for mode in ("forward_reverse", "linearized"):
        np.testing.assert_allclose(loss.hessian(mode) @ eye, matrix, atol=1e-12)


def test_one_trace_serves_all_batches_of_a_shape() -> None:
    case = CASES[0]
    loss = Loss(case.model(), F.cross_entropy, case.batches((6, 6, 6, 2)))
    operator = loss.hessian("linearized")
    _ = operator @ np.ones(loss.size)
    assert len(operator._linear_map._traces) == 2  # 6 and 2 examples


def test_a_model_whose_code_has_changed_is_traced_anew() -> None:
    case = CASES[0]
    model = case.model()
    loss = Loss(model, F.cross_entropy, case.batches())
    _ = loss.hessian("linearized") @ np.ones(loss.size)
    model[1] = nn.Sigmoid()
    expected = loss.hessian("reverse_reverse") @ np.ones(loss.size)
    np.testing.assert_allclose(loss.hessian("linearized") @ np.ones(loss.size), expected, atol=1e-13)


def test_a_branch_on_values_is_not_traced() -> None:
    """Whichever way one batch goes would be taken for all."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(x)) if x.sum() > 0 else self.layer(x) ** 3

    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).abs()
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Loss(Branch().double(), F.cross_entropy, [(x[:3], y[:3]), (-x[3:], y[3:])])
    reference = loss.hessian("reverse_reverse") @ np.eye(15)
    chosen = loss.hessian()
    assert "linearized" in chosen.choice.refused
    np.testing.assert_allclose(chosen @ np.eye(15), reference, atol=1e-13)


def test_fixed_subset_is_chosen_once_and_stratified_on_request() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    data = TensorDataset(torch.arange(1000.0), labels)
    batches = fixed_subset(data, 0.05, labels=labels, batch_size=20)
    assert [len(x) for x, _ in batches] == [20, 20, 10]
    assert torch.cat([y for _, y in batches]).bincount().tolist() == [45, 5]
    again = fixed_subset(data, 0.05, labels=labels, batch_size=20)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    other = fixed_subset(data, 0.05, labels=labels, batch_size=20, seed=1)
    assert not torch.equal(batches[0][0], other[0][0])
    assert sum(len(x) for x, _ in fixed_subset(data)) == 50


# -- mistakes ---------------------------------------------------------------------------------------


class Noisy(Dataset):
    """Augmentation: other values at each reading."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i >= 12:
            raise IndexError
        return torch.randn(4, generator=self.generator, dtype=torch.float64), i % 3


class Dropping(nn.Module):
    """Dropout that eval mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(F.dropout(x, 0.5, training=True))


def test_sources_that_change_are_refused() -> None:
    case = CASES[0]
    with pytest.raises(HessianError, match="another pass over the data gave other examples"):
        Loss(case.model(), F.cross_entropy, Noisy())
    x, y = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, drop_last=True)
    with pytest.raises(HessianError, match="fixed_subset"):
        Loss(case.model(), F.cross_entropy, loader)
    with pytest.raises(HessianError, match="no mean over examples"):
        Loss(Dropping(), F.cross_entropy, case.batches())
    frozen = Loss(case.model(), F.cross_entropy, fixed_subset(Noisy(), 1.0))  # read once: a fixed set
    assert frozen.examples == 12


def test_products_of_a_source_that_changes_are_refused() -> None:
    case = CASES[0]
    loss = Loss(case.model(), F.cross_entropy, Noisy(), check=False)
    with pytest.raises(HessianError, match="another pass over the data gave other examples"):
        _ = loss.hessian("forward_reverse") @ np.ones(loss.size)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_shuffle_of_all_examples_is_mere_rounding_at_any_scale(scale: float) -> None:
    x, y = (torch.cat(parts) for parts in zip(*CASES[0].batches((40, 17)), strict=True))
    loader = DataLoader(TensorDataset(x.float(), y), batch_size=5, shuffle=True)
    model = CASES[0].model(torch.float32)
    loss = Loss(model, lambda z, y: scale * F.cross_entropy(z, y), loader)
    _ = loss.hessian("forward_reverse") @ np.ones(loss.size)


def test_every_order_and_cut_of_the_examples_is_the_same_data() -> None:
    x, y = (torch.cat(parts) for parts in zip(*CASES[0].batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)
    loss = CASES[0].loss_of(loader)
    with torch.random.fork_rng():
        for seed in range(30):
            torch.manual_seed(seed)
            loss.value()


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_a_subset_has_its_share_of_the_data(share: float) -> None:
    data = TensorDataset(torch.arange(40.0))
    batches = fixed_subset(data, share, batch_size=3)
    assert [len(batch[0]) for batch in batches][:-1] == [3] * (len(batches) - 1)
    assert sum(len(batch[0]) for batch in batches) == 40 * share
    assert sum(len(batch[0]) for batch in fixed_subset(data, 1, batch_size=1)) == 40
    assert len(fixed_subset(data, 1e-9)[0][0]) == 1


def test_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quarter of all of it, whatever else runs; in a container, of what it may have."""
    limits = tmp_path / "memory.max", tmp_path / "none"
    limits[0].write_text("4000000\n")
    monkeypatch.setattr("hessian.empirical_risk.memory._LIMITS", limits)
    assert default_limit(torch.device("cpu")) == 1_000_000
    limits[0].write_text("max\n")
    pages = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text()).group(1)) * 1024
    assert default_limit(torch.device("cpu")) == pytest.approx(pages / 4, rel=0.05)
    assert ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("out"))
    assert ran_out(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not ran_out(RuntimeError("a mistake"))


def test_batches_are_cut_to_a_quarter_of_the_memory_that_a_graph_takes() -> None:
    """x W^T + b -> tanh -> mean: autograd keeps tanh's result, which serves the square too."""
    case = Case("one", lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh()), (4,), lambda z, y: (z**2).mean())
    per_example = 8 * 8 + 1  # in float64, and a number for a sample of 8
    seen: list[int] = []
    for limit in (4 * per_example * 5, 4 * per_example * 6 - 1, 4 * per_example * 6):
        loss = case.loss_of(case.batches((30,)), memory_limit=limit)
        seen.append(loss._passes._piece)
    assert seen == [5, 5, 6]


def model_and_batches() -> tuple[nn.Module, list]:
    return CASES[0].model(), CASES[0].batches()


@pytest.mark.parametrize(
    ("loss_fn", "sentence"),
    [
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), r"no scalar but \(7,\)"),
        (lambda z, y: F.cross_entropy(z, y, reduction="sum"), "no mean over examples"),
        (lambda z, y: F.cross_entropy(z, y) * float("nan"), "the loss is nan"),
        (lambda z, y: F.cross_entropy(z, y).detach(), "does not depend on any of the chosen parameters"),
        (lambda z, y: 1.0, "no scalar but float"),
    ],
)
def test_losses_that_are_none(loss_fn, sentence: str) -> None:
    model, batches = model_and_batches()
    with pytest.raises(HessianError, match=sentence):
        Loss(model, loss_fn, batches)


def test_other_mistakes_get_a_sentence() -> None:
    model, batches = model_and_batches()
    with pytest.raises(HessianError, match=r"no parameter matches 'fc\*'; the nearest names are"):
        Loss(model, F.cross_entropy, batches, parameters="fc*")
    with pytest.raises(HessianError, match="either loss_fn"):
        Loss(model, None, batches)
    with pytest.raises(HessianError, match="iterator"):
        Loss(model, F.cross_entropy, iter(batches))
    with pytest.raises(HessianError, match="no batch"):
        Loss(model, F.cross_entropy, [])
    with pytest.raises(HessianError, match="no pair"):
        Loss(model, F.cross_entropy, [batches[0][0]])
    with pytest.raises(HessianError, match="different lengths"):
        Loss(model, F.cross_entropy, (batches[0][0], batches[2][1]))
    with pytest.raises(HessianError, match="no mode 'backward'"):
        Loss(model, F.cross_entropy, batches).hessian("backward")
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(HessianError, match="no parameter of the model requires a gradient"):
        Loss(model, F.cross_entropy, batches)
    named = Loss(model, F.cross_entropy, batches, parameters="*")  # frozen ones can be measured by name
    assert named.size == 43


def test_nan_in_a_later_batch_is_refused() -> None:
    model, batches = model_and_batches()
    batches[1][0][0, 0] = float("nan")
    with pytest.raises(HessianError, match="the loss is nan"):
        Loss(model, F.cross_entropy, batches)


def test_parameters_that_are_not_used_have_no_curvature_unless_asked_for_by_name() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(4, 3).double(), nn.Linear(2, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    batches = CASES[0].batches()
    loss = Loss(Spare(), F.cross_entropy, batches)
    for mode in ("reverse_reverse", "linearized"):
        product = loss.hessian(mode) @ np.ones(loss.size)
        assert np.all(product[15:] == 0)
        assert np.any(product[:15] != 0)
    with pytest.raises(HessianError, match=r"does not depend on any.*spare\.weight"):
        Loss(Spare(), F.cross_entropy, batches, parameters="spare.*")


def test_products_are_those_of_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    case = CASES[2]
    model = case.model()
    x, y = case.batches((256,))[0]
    batches = [(x[:250], y[:250]), (x[250:], y[250:])]
    loss = Loss(model, F.cross_entropy, batches)
    peer = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
    vector = np.random.default_rng(0).standard_normal(loss.size)
    np.testing.assert_allclose(loss.hessian() @ vector, peer.to_scipy() @ vector, atol=1e-12)


def test_a_parameter_that_the_forward_does_not_use_has_no_gradient_and_no_curvature() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    torch.manual_seed(0)
    model, x, y = Half(), torch.randn(6, 3), torch.arange(6) % 2
    loss = Loss(model, F.cross_entropy, [(x, y)])
    F.cross_entropy(model(x), y).backward()
    expected = torch.cat([model.used.weight.grad.flatten(), model.used.bias.grad])
    np.testing.assert_allclose(loss.gradient(), np.r_[expected.numpy(), np.zeros(8)], atol=1e-7)
    assert not (loss.hessian() @ np.eye(16)[:, 8:]).any()
