"""Losses, models, batches and data that nobody expects: the dense float64 truth, or a sentence."""

from __future__ import annotations

import random
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hessian import Lanczos, Loss, extreme_eigenpairs, fixed_subset, gradient_overlap

from . import Case

Reference = Callable[[nn.Module], torch.Tensor]


def rows(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randint(4, (n,), generator=g)


X, Y = rows()


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 4)).to(dtype)


def mean_of(loss_fn: Callable[..., torch.Tensor] = F.cross_entropy, x: Any = X, y: Any = Y) -> Reference:
    return lambda model: loss_fn(model(x), y)


def right(loss: Loss, reference: Reference, mode: Any = "retained", tolerance: float = 1e-11) -> None:
    """Value, gradient and the whole Hessian are those of all examples as one batch, by plain autograd."""
    model = loss.objective.model
    at = list(model.parameters())
    value = reference(model)
    gradient = torch.autograd.grad(value, at, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    columns = [torch.autograd.grad(entry, at, retain_graph=True, allow_unused=True) for entry in flat]
    matrix = [
        torch.cat([(torch.zeros_like(p) if h is None else h).reshape(-1) for h, p in zip(c, at, strict=True)])
        for c in columns
    ]
    np.testing.assert_allclose(loss.value(), value.item(), rtol=tolerance)
    np.testing.assert_allclose(loss.gradient(), flat.detach().numpy(), atol=tolerance)
    products = loss.hessian(mode) @ np.eye(loss.size)
    np.testing.assert_allclose(products, torch.stack(matrix).numpy(), atol=10 * tolerance)


def cut(sizes: tuple[int, ...]) -> list[Any]:
    return list(zip(X[: sum(sizes)].split(sizes), Y[: sum(sizes)].split(sizes), strict=True))


class Named(nn.Module):
    """Takes its input by name, and answers in one of the usual ways."""

    def __init__(self, answer: str = "tensor"):
        super().__init__()
        self.net, self.answer = net(), answer

    def forward(self, x: torch.Tensor, **more: Any) -> Any:
        z = self.net(x)
        return {"tensor": z, "object": SimpleNamespace(logits=z), "dict": {"logits": z, "hidden": x}}[
            self.answer
        ]


Pair = namedtuple("Pair", ["image", "label"])  # as collate functions make them


class Items(Dataset[Any]):
    """A data set of anything."""

    def __init__(self, items: list[Any]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Summed(nn.Module):
    """Of inputs in a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, parts: Any) -> torch.Tensor:
        return self.net(sum(parts.values() if isinstance(parts, dict) else parts))


def packed_mean(model: nn.Module, batch: Any) -> torch.Tensor:
    sums = torch.nn.utils.rnn.pad_packed_sequence(batch[0], batch_first=True)[0].sum(1)
    return F.cross_entropy(model(sums), batch[1])


def foreign(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder(">"))


def locked(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


X_, Y_ = X.numpy(), Y.numpy()
FORMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "tensors": (net, lambda: (X, Y)),
    "arrays": (net, lambda: (X_, Y_)),
    "batches in a list": (net, lambda: cut((5, 7))),
    "batches in a tuple": (net, lambda: tuple(cut((5, 7)))),
    "batches as lists": (net, lambda: [list(b) for b in cut((5, 7))]),
    "named tuples": (net, lambda: [Pair(*b) for b in cut((5, 7))]),
    "three in a batch": (net, lambda: [(x, y, torch.arange(len(x))) for x, y in cut((5, 7))]),
    "words in a batch": (net, lambda: [(x, y, ["path"] * len(x)) for x, y in cut((5, 7))]),
    "array batches": (net, lambda: [(x.numpy(), y.numpy()) for x, y in cut((5, 7))]),
    "array of other bytes": (net, lambda: [(foreign(x.numpy()), foreign(y.numpy())) for x, y in cut((5, 7))]),
    "array read backwards": (net, lambda: [(X_[::-1], Y_[::-1])]),
    "array not to be written": (net, lambda: [(locked(X_), locked(Y_))]),
    "label of small integers": (net, lambda: [(X_, Y_.astype(np.int64))]),
    "an empty batch between": (net, lambda: [*cut((5,)), (X[:0], Y[:0]), (X[5:], Y[5:])]),
    "an empty batch first": (net, lambda: [(X[:0], Y[:0]), (X, Y)]),
    "one example at a time": (net, lambda: cut((1,) * 12)),
    "one example, then the rest": (net, lambda: cut((1, 11))),
    "a data set": (net, lambda: TensorDataset(X, Y)),
    "a data set of arrays": (net, lambda: Items([(x, int(y)) for x, y in zip(X_, Y_, strict=True)])),
    "a loader": (net, lambda: DataLoader(TensorDataset(X, Y), batch_size=5)),
    "a loader that shuffles": (net, lambda: DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)),
    "a dict of tensors": (Named, lambda: {"x": X, "labels": Y}),
    "an object's logits": (partial(Named, "object"), lambda: [{"x": X, "labels": Y}]),
    "a dict's logits": (partial(Named, "dict"), lambda: [{"x": X, "labels": Y}]),
    "logits of a pair": (partial(Named, "object"), lambda: (X, Y)),
    "a mapping that is no dict": (Named, lambda: [UserDict(x=X, labels=Y)]),
    "a number for all examples": (Named, lambda: [{"x": X, "labels": Y, "heat": torch.tensor(2.0)}]),
    "a data set of dicts": (Named, lambda: Items([{"x": x, "label": y} for x, y in zip(X, Y, strict=True)])),
    "inputs in a list": (Summed, lambda: [([x, 0 * x], y) for x, y in cut((5, 7))]),
    "inputs in a dict": (Summed, lambda: [({"a": 2 * x, "b": -x}, y) for x, y in cut((5, 7))]),
    "data that require a gradient": (net, lambda: (X.clone().requires_grad_(), Y)),
    "data from a graph": (net, lambda: (X * torch.ones(3, dtype=X.dtype, requires_grad=True), Y)),
    "data of inference mode": (net, lambda: [inferred()]),
    "columns in memory": (net, lambda: (X.T.contiguous().T, Y)),
    "labels of int16": (net, lambda: (X, Y.to(torch.int16).long())),
    **{
        f"a dict with {key!r}": (Named, lambda key=key: [{"x": x, key: y} for x, y in cut((5, 7))])
        for key in ("labels", "label", "y", "targets", "target")
    },
}


def inferred() -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return X.clone(), Y.clone()


def form(build: Callable[[], nn.Module], data: Callable[[], Any]) -> None:
    model = build()
    inner = model if isinstance(model, nn.Sequential) else model.net
    right(Loss(model, F.cross_entropy, data()), lambda _: F.cross_entropy(inner(X), Y))


def packed() -> None:
    lengths = [3, 2, 1, 4, 1]
    sequences = [X[i : i + n] for i, n in enumerate(lengths)]
    model = net()
    batches = [(pack_sequence(sequences[a:b], enforce_sorted=False), Y[a:b]) for a, b in ((0, 2), (2, 5))]
    sums = torch.stack([s.sum(0) for s in sequences])
    loss = Loss(model, None, batches, batch_loss=packed_mean)
    assert loss.examples == 5
    right(loss, mean_of(x=sums, y=Y[:5]))


# -- loss functions --------------------------------------------------------------------------------

G = torch.Generator().manual_seed(2)
REAL = torch.randn(12, 4, generator=G, dtype=torch.float64)
BITS = (REAL > 0).double()
SHARES = torch.softmax(REAL, 1)
WEIGHT = torch.tensor([0.13, 2.7, 0.9, 1.31], dtype=torch.float64)
LOSSES: dict[str, tuple[Callable[..., torch.Tensor], torch.Tensor]] = {
    "cross-entropy": (F.cross_entropy, Y),
    "label smoothing": (partial(F.cross_entropy, label_smoothing=0.2), Y),
    "soft labels": (F.cross_entropy, SHARES),
    "nll": (lambda z, y: F.nll_loss(F.log_softmax(z, 1), y), Y),
    "mse": (F.mse_loss, REAL),
    "l1": (F.l1_loss, REAL),
    "smooth l1": (F.smooth_l1_loss, REAL),
    "huber": (F.huber_loss, REAL),
    "bce": (F.binary_cross_entropy_with_logits, BITS),
    "kl": (lambda z, y: F.kl_div(F.log_softmax(z, 1), y, reduction="batchmean"), SHARES),
    "poisson": (lambda z, y: F.poisson_nll_loss(z, y), BITS),
    "soft margin": (lambda z, y: F.soft_margin_loss(z, y), 2 * BITS - 1),
    "multilabel": (F.multilabel_soft_margin_loss, BITS),
    "a module": (nn.CrossEntropyLoss(), Y),
    "focal": (lambda z, y: ((1 - (p := z.softmax(1).gather(1, y[:, None]))) ** 2 * -p.log()).mean(), Y),
    "with a constant": (lambda z, y: F.cross_entropy(z, y) + 3, Y),
    "negative": (lambda z, y: -F.cross_entropy(z, y), Y),
    "of one element": (lambda z, y: F.cross_entropy(z, y).reshape(1, 1), Y),
    "tiny": (lambda z, y: 1e-30 * F.cross_entropy(z, y), Y),
    "huge": (lambda z, y: 1e30 * F.cross_entropy(z, y), Y),
    "zero": (lambda z, y: 0 * F.cross_entropy(z, y), Y),
    "weighted by hand": (lambda z, y: (WEIGHT[y] * F.cross_entropy(z, y, reduction="none")).mean(), Y),
}


def of_function(loss_fn: Callable[..., torch.Tensor], y: torch.Tensor) -> None:
    scale = 1e30 if loss_fn is LOSSES["huge"][0] else 1.0
    data = list(zip(X.split((5, 1, 6)), y.split((5, 1, 6)), strict=True))
    right(Loss(net(), loss_fn, data), lambda m: loss_fn(m(X), y).squeeze(), tolerance=1e-11 * scale)


def weighted(sizes: tuple[int, ...]) -> None:
    loss_fn = partial(F.cross_entropy, weight=WEIGHT)
    loss = Loss(net(), loss_fn, cut(sizes), count=lambda b: float(WEIGHT[b[1]].sum()))
    right(loss, mean_of(loss_fn))
    assert loss.examples == 12


def ignoring(sizes: tuple[int, ...], limit: int | None = None) -> None:
    """A batch, or a piece of one, without a label that counts has no mean; nothing is missing without it."""
    y = Y.clone()
    y[[0, 1, 2, 3, 7]] = -100
    data = list(zip(X.split(sizes), y.split(sizes), strict=True))
    count = lambda b: (b[1] >= 0).sum()  # noqa: E731
    right(Loss(net(), F.cross_entropy, data, count=count, memory_limit=limit), mean_of(y=y))


def decayed(sizes: tuple[int, ...], decay: float) -> None:
    def reference(model: nn.Module) -> torch.Tensor:
        return mean_of()(model) + decay / 2 * sum(p.square().sum() for p in model.parameters())

    right(Loss(net(), F.cross_entropy, cut(sizes), weight_decay=decay), reference)


def saturated(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    """Labels that are certain: the loss is as small as the rounding of the logits."""
    model = net(dtype)
    with torch.no_grad():
        model[2].weight *= 40
    x = X.to(dtype)
    y = model(x).argmax(1)
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    loss = Loss(model, F.cross_entropy, data, check=True)
    value = loss.value()
    assert abs(value - F.cross_entropy(model.double()(x.double()), y).item()) < 1e-5


def rounded_off(sizes: tuple[int, ...], reduction: str) -> None:
    """A mean whose float32 rounding is larger than any tolerance; a sum is one all the same."""

    def loss_fn(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(z, y, reduction=reduction) + 1e6 - 1e6

    data = [(x.float(), y) for x, y in cut(sizes)]
    loss = Loss(net(torch.float32), loss_fn, data)
    assert abs(loss.value() - F.cross_entropy(net()(X), Y).item()) < 0.1


def only_in_float32(sizes: tuple[int, ...]) -> None:
    """What float64 cannot be asked about needs no asking."""
    weight = WEIGHT.float()
    data = [(x.float(), y) for x, y in cut(sizes)]
    loss_fn = partial(F.cross_entropy, weight=weight)
    loss = Loss(net(torch.float32), loss_fn, data, count=lambda b: weight[b[1]].sum())
    exact = F.cross_entropy(net(torch.float32).double()(X.float().double()), Y, weight=weight.double())
    assert abs(loss.value() - exact.item()) < 1e-6


def tokens() -> None:
    """Sequences of unlike length, flat: only count= knows how many examples there are."""
    data = [((X[:6].reshape(2, 3, 3)), Y[:6]), ((X[6:].reshape(2, 3, 3)), Y[6:])]
    loss_fn = lambda z, y: F.cross_entropy(z.flatten(0, 1), y)  # noqa: E731
    loss = Loss(net(), loss_fn, data, count=lambda b: len(b[1]))
    right(loss, mean_of())
    assert loss.examples == 12


def summed_loss(sizes: tuple[int, ...], factor: float = 1.0) -> None:
    Loss(net(), lambda z, y: factor * F.cross_entropy(z, y, reduction="sum"), cut(sizes))


def weighted_without_count(sizes: tuple[int, ...]) -> None:
    Loss(net(), partial(F.cross_entropy, weight=WEIGHT), cut(sizes))


def counted(count: Any, sizes: tuple[int, ...] = (5, 7)) -> None:
    Loss(net(), F.cross_entropy, cut(sizes), count=count)


# -- data that change ------------------------------------------------------------------------------


class Changing:
    """Batches that are read again and again, and changed at the `at`-th reading."""

    def __init__(self, change: Callable[[list[Any]], Any], at: int = 2):
        self.change, self.at, self.reading = change, at, 0

    def __iter__(self) -> Iterator[Any]:
        self.reading += 1
        batches = [(x.clone(), y.clone()) for x, y in cut((5, 7))]
        yield from (self.change(batches) or batches) if self.reading > self.at else batches


def nudged(batches: list[Any]) -> None:
    batches[1][0][3, 2] += 1e-15 * batches[1][0][3, 2].abs() + 1e-16


def flipped(batches: list[Any]) -> None:
    batches[0][0][2] *= -1


def mirrored(batches: list[Any]) -> None:
    batches[0][0][2] = batches[0][0][2].flip(0)


def first_alone(batches: list[Any]) -> None:
    return batches[:1]


def first_again(batches: list[Any]) -> None:
    return batches + batches[:1]


def labels_swapped(batches: list[Any]) -> None:
    y = batches[0][1]
    i = int((y != y[0]).nonzero()[0])
    y[[0, i]] = y[[i, 0]]


def entries_swapped(batches: list[Any]) -> None:
    x = batches[0][0]
    x[[0, 1], 1] = x[[1, 0], 1]


def changing(change: Callable[[list[Any]], Any], at: int = 2) -> None:
    loss = Loss(net(), F.cross_entropy, Changing(change, at))
    loss.gradient()
    _ = loss.hessian("reverse_reverse") @ np.ones(loss.size)
    loss.value()


def reordered(change: Callable[[list[Any]], Any]) -> None:
    right(Loss(net(), F.cross_entropy, Changing(change)), mean_of(), "reverse_reverse")


def across(batches: list[Any]) -> list[Any]:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    return list(zip(x[order].split((4, 4, 4)), y[order].split((4, 4, 4)), strict=True))


class Augmented(Dataset[Any]):
    """One example in forty is another at each reading."""

    def __init__(self, stream: Callable[[], float]):
        self.stream = stream

    def __len__(self) -> int:
        return 240

    def __getitem__(self, i: int) -> Any:
        return X[i % 12] * (-1 if self.stream() < 0.025 else 1), Y[i % 12]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(cut((5, 7)))


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise OSError("image file is truncated")
        return X[i], Y[i]


def loss_of(model: Any = None, loss_fn: Any = F.cross_entropy, data: Any = None, **options: Any) -> Loss:
    return Loss(model or net(), loss_fn, (X, Y) if data is None else data, **options)


# -- models ----------------------------------------------------------------------------------------


class Holding(nn.Module):
    """A network, and a parameter of some kind beside it."""

    def __init__(self, spare: nn.Parameter):
        super().__init__()
        self.net, self.spare = net(), spare

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def whole_numbers() -> None:
    spare = nn.Parameter(torch.arange(3), requires_grad=False)
    model = Holding(spare)
    loss = Loss(model, F.cross_entropy, (X, Y))
    assert loss.size == sum(p.numel() for p in model.net.parameters())
    assert np.isfinite(loss.hessian("retained") @ np.ones(loss.size)).all()


def normed(training: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 4)).double()
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.3, -0.2]))
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loss = Loss(model, F.cross_entropy, cut((5, 7)))
    assert model.training == training
    model.eval()
    right(loss, mean_of())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def half(dtype: torch.dtype, tolerance: float, cast: bool) -> None:
    """Against the float64 Hessian of the same rounded weights and data."""
    model = net(dtype)
    data = [(x.to(dtype), y) for x, y in cut((5, 7))]
    options = {"dtype": torch.float64} if cast else {}
    loss = Loss(model, F.cross_entropy, data, **options)
    exact = Loss(net(dtype).double(), F.cross_entropy, (X.to(dtype).double(), Y))
    eye = np.eye(loss.size)
    assert abs(loss.value() - exact.value()) <= tolerance
    np.testing.assert_allclose(loss.gradient(), exact.gradient(), atol=tolerance)
    np.testing.assert_allclose(
        loss.hessian("retained") @ eye, exact.hessian("retained") @ eye, atol=tolerance
    )
    assert next(model.parameters()).dtype == dtype


def under(context: Callable[[], Any]) -> None:
    loss = loss_of()
    expected = loss.value(), loss.gradient(), loss.hessian("retained") @ np.ones(loss.size)
    with context():
        inside = loss_of()
        for mode in ("retained", "forward_reverse"):
            found = inside.value(), inside.gradient(), inside.hessian(mode) @ np.ones(loss.size)
            for a, b in zip(expected, found, strict=True):
                np.testing.assert_allclose(b, a, atol=1e-13)


def gauss_newton(loss_fn: Callable[..., torch.Tensor], y: torch.Tensor, limit: int | None) -> None:
    """J^T (d2 loss / d outputs2) J, written out."""
    model = net()
    loss = Loss(model, loss_fn, (X, y), memory_limit=limit)
    at = list(model.parameters())
    z = model(X)
    jacobian = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(e, at, retain_graph=True)])
            for e in z.flatten()
        ]
    )
    middle = torch.autograd.functional.hessian(lambda z: loss_fn(z, y), z.detach()).reshape(48, 48)
    found = loss.gauss_newton("reverse_reverse" if limit else "retained") @ np.eye(loss.size)
    np.testing.assert_allclose(found, (jacobian.T @ middle @ jacobian).numpy(), atol=1e-12)


def raising(error: Exception) -> Callable[..., torch.Tensor]:
    def loss_fn(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise error

    return loss_fn


def overlap() -> None:
    loss = loss_of()
    gradient_overlap(loss, extreme_eigenpairs(loss.hessian("retained"), 1, 1))


def saved_to_a_folder() -> None:
    extreme_eigenpairs(np.diag(np.arange(30.0)), 1, 1, solver=Lanczos(save_to="."))


NO_MEAN = "no mean over examples"
OTHER = "gave other examples than the first"
CASES = [
    *(Case(f"batches: {name}", partial(form, *what)) for name, what in FORMS.items()),
    Case("batches: packed sequences", packed),
    *(Case(f"loss: {name}", partial(of_function, *what)) for name, what in LOSSES.items()),
    *(
        Case(f"Gauss-Newton of {name}, memory {limit}", partial(gauss_newton, *LOSSES[name], limit))
        for name in ("cross-entropy", "mse", "huber", "bce", "kl")
        for limit in (None, 1000)
    ),
    *(
        Case(f"count: sums of weights, batches {sizes}", partial(weighted, sizes))
        for sizes in ((12,), (5, 7), (1, 11))
    ),
    *(
        Case(
            f"count: labels that are ignored, batches {sizes}, memory {limit}",
            partial(ignoring, sizes, limit),
        )
        for sizes in ((12,), (4, 8), (5, 7), (1, 11))
        for limit in (None, 1)
    ),
    *(
        Case(f"weight decay {decay}, batches {sizes}", partial(decayed, sizes, decay))
        for sizes in ((12,), (1, 11))
        for decay in (0.3, -0.1, 1e4)
    ),
    *(
        Case(f"a saturated network, {dtype}, batches {sizes}", partial(saturated, dtype, sizes))
        for dtype in (torch.float64, torch.float32)
        for sizes in ((12,), (5, 7), (1,) * 12)
    ),
    *(
        Case(
            f"a {reduction} with much rounding, batches {sizes}",
            partial(rounded_off, sizes, reduction),
            sentence,
        )
        for sizes in ((12,), (5, 7), (1, 11))
        for reduction, sentence in (("mean", None), ("sum", NO_MEAN))
    ),
    *(
        Case(f"weights that only work in float32, batches {sizes}", partial(only_in_float32, sizes))
        for sizes in ((12,), (5, 7), (1, 11))
    ),
    Case("count: tokens, flat", tokens),
    Case("count: none for tokens, flat", lambda: loss_of(data=[(X.reshape(4, 3, 3), Y)]), "pass count="),
    *(
        Case(f"count: {count!r}", partial(counted, lambda _, count=count: count), "count= gave")
        for count in (None, "many", float("nan"), float("inf"), -1, 1j, torch.ones(2), [3])
    ),
    Case("count: does not add up", partial(counted, lambda b: len(b[0]) ** 2), "must add up"),
    Case("count: the same for all batches", partial(counted, lambda _: 1), "must add up"),
    Case("count: nothing at all", partial(counted, lambda _: 0), "no term in all the data"),
    *(
        Case(f"a sum, batches {sizes}, times {factor}", partial(summed_loss, sizes, factor), NO_MEAN)
        for sizes in ((12,), (1, 11), (1, 1), (1, 1, 2), (2,), (1,) * 12, (5, 7))
        for factor in (1.0, -1e-9)
    ),
    *(
        Case(f"weights without count, batches {sizes}", partial(weighted_without_count, sizes), NO_MEAN)
        for sizes in ((12,), (1, 11), (1, 1, 10), (6, 6))
    ),
    Case(
        "batch statistics in the loss",
        lambda: loss_of(loss_fn=lambda z, y: F.cross_entropy(z - z.mean(0), y)),
        NO_MEAN,
    ),
    Case(
        "a maximum over the batch",
        lambda: loss_of(loss_fn=lambda z, y: F.cross_entropy(z, y, reduction="none").max()),
        NO_MEAN,
    ),
    Case(
        "divided by a fixed batch size",
        lambda: loss_of(loss_fn=lambda z, y: F.cross_entropy(z, y, reduction="sum") / 12),
        NO_MEAN,
    ),
    *(
        Case(f"data change: {change.__name__} at reading {at}", partial(changing, change, at), OTHER)
        for change in (
            nudged,
            flipped,
            mirrored,
            labels_swapped,
            entries_swapped,
            first_alone,
            first_again,
        )
        for at in (2, 3, 4)
    ),
    Case("data change: nothing but order of batches", partial(reordered, lambda b: b[::-1])),
    Case("data change: order across batches", partial(reordered, across)),
    Case(
        "rare augmentation, Python's stream", lambda: loss_of(data=Augmented(random.Random(0).random)), OTHER
    ),
    Case(
        "rare augmentation, NumPy's stream",
        lambda: loss_of(data=Augmented(np.random.default_rng(0).random)),
        OTHER,
    ),
    Case(
        "rare augmentation, torch's stream",
        lambda: loss_of(data=Augmented(lambda: torch.rand(()).item())),
        OTHER,
    ),
    Case(
        "another rest dropped each time",
        lambda: loss_of(data=DataLoader(TensorDataset(X, Y), 5, shuffle=True, drop_last=True)),
        OTHER,
    ),
    Case(
        "dropout that is always on",
        lambda: loss_of(loss_fn=lambda z, y: F.cross_entropy(F.dropout(z), y)),
        NO_MEAN,
    ),
    Case(
        "random noise on the mean",
        lambda: loss_of(loss_fn=lambda z, y: F.cross_entropy(z, y) + torch.rand(())),
        NO_MEAN,
    ),
    *(
        Case(f"data: {name}", lambda data=data: loss_of(data=data() if callable(data) else data), sentence)
        for name, data, sentence in (
            ("a number", 3, "the data is a int"),
            ("a word", "cifar", "the data is a str"),
            ("one tensor", X, "the data is a Tensor"),
            ("an iterator", lambda: iter(cut((5, 7))), "iterator"),
            ("a generator", lambda: (b for b in cut((5, 7))), "iterator"),
            ("no batch", lambda: [], "no batch"),
            ("empty batches only", lambda: [(X[:0], Y[:0])], "no batch with an example"),
            ("empty tensors", lambda: (X[:0], Y[:0]), "no batch with an example"),
            ("numbers for batches", lambda: [1, 2], "no pair"),
            ("None for batches", lambda: [None], "no pair"),
            ("tensors for batches", lambda: [X], "no pair"),
            ("words for batches", lambda: ["ab"], "no tensor that has a length"),
            ("a dict without labels", lambda: [{"x": X}], "no dict with labels"),
            ("unlike lengths", lambda: (X, Y[:5]), "different lengths"),
            ("unlike lengths in a batch", lambda: [(X, Y[:5])], "different lengths (5, 12)"),
            ("labels without a dimension", lambda: [(X[0], torch.tensor(1.0))], "fails on a batch"),
            ("labels out of range", lambda: (X, Y + 9), "fails on a batch of the data: IndexError"),
            ("labels out of range later", lambda: [(X[:5], Y[:5]), (X[5:], Y[5:] + 9)], "fails on a batch"),
            ("labels as floats", lambda: (X, Y.double()), "fails on a batch"),
            ("the wrong width", lambda: (X[:, :2], Y), "fails on a batch"),
            ("the wrong width later", lambda: [(X, Y), (X[:, :2], Y)], "fails on a batch"),
            ("float32 in a float64 model", lambda: (X.float(), Y), "data of float32 in a model of float64"),
            ("integers in a float64 model", lambda: (Y[:, None].repeat(1, 3), Y), "fails on a batch"),
            ("NaN", lambda: (X * float("nan"), Y), "the loss is nan"),
            ("infinity in the last batch", lambda: [(X, Y), (X / 0, Y)], "the loss is nan"),
            ("a broken file", Broken, "cannot be read (OSError: image file is truncated)"),
            ("objects", lambda: [(np.array([object()] * 3), Y[:3])], "fails on a batch"),
        )
    ),
    Case("data: None", lambda: Loss(net(), F.cross_entropy, None), "the data is a NoneType"),
    Case(
        "data: an iterable data set",
        lambda: right(loss_of(data=DataLoader(Endless(), batch_size=None)), mean_of()),
    ),
    *(
        Case(f"loss: {name}", lambda loss_fn=loss_fn: loss_of(loss_fn=loss_fn), sentence)
        for name, loss_fn, sentence in (
            ("a vector", partial(F.cross_entropy, reduction="none"), "no scalar but (8,)"),
            ("a tuple", lambda z, y: (F.cross_entropy(z, y), z), "no scalar but tuple"),
            ("None", lambda z, y: None, "no scalar but NoneType"),
            ("a float", lambda z, y: 1.0, "no scalar but float"),
            ("an integer", lambda z, y: (z.argmax(1) != y).sum(), "no scalar but int64"),
            ("a truth", lambda z, y: (z.argmax(1) != y).any(), "no scalar but bool"),
            ("a complex number", lambda z, y: F.cross_entropy(z, y) * 1j, "no scalar but complex"),
            ("NaN", lambda z, y: F.cross_entropy(z, y) * float("nan"), "the loss is nan"),
            ("infinity", lambda z, y: F.cross_entropy(z, y) / 0, "the loss is inf"),
            ("a constant", lambda z, y: torch.tensor(1.0), "does not depend on any"),
            ("detached", lambda z, y: F.cross_entropy(z.detach(), y), "does not depend on any"),
            ("an error rate", lambda z, y: (z.argmax(1) != y).double().mean(), "does not depend on any"),
            ("a word", "cross_entropy", "cannot be called"),
            ("of one argument", lambda z: z.mean(), "fails on a batch"),
            ("raising", raising(ValueError("no such thing\nat all")), "ValueError: no such thing"),
            ("raising a key", raising(KeyError("y")), "KeyError: 'y'"),
            ("none given", None, "give either loss_fn"),
        )
    ),
    *(
        Case(f"option {', '.join(options)}: {sentence}", partial(loss_of, **options), sentence)
        for options, sentence in (
            ({"parameters": "fc*"}, "no parameter matches 'fc*'"),
            ({"parameters": ["0.*", "9.*"]}, "no parameter matches '9.*'"),
            ({"parameters": []}, "an empty list"),
            ({"parameters": ""}, "no parameter matches ''"),
            ({"parameters": 3}, "parameters is 3"),
            ({"parameters": [0]}, "parameters is [0]"),
            ({"memory_limit": 0}, "memory_limit is 0"),
            ({"memory_limit": -5}, "memory_limit is -5"),
            ({"weight_decay": float("nan")}, "weight_decay is nan"),
            ({"dtype": torch.int64}, "dtype is torch.int64"),
            ({"dtype": "float64"}, "dtype is 'float64'"),
            ({"batch_loss": F.cross_entropy}, "give either loss_fn"),
        )
    ),
    Case("model: a function", lambda: Loss(lambda x: x, F.cross_entropy, (X, Y)), "the model is a function"),  # type: ignore[arg-type]
    Case("model: without parameters", lambda: loss_of(nn.Tanh()), "no parameters to differentiate by"),
    Case("model: frozen", lambda: loss_of(net().requires_grad_(False)), "requires a gradient"),
    Case("model: frozen, by name", lambda: right_when_frozen()),
    Case("model: whole numbers beside", whole_numbers),
    Case(
        "model: whole numbers by name",
        lambda: loss_of(Holding(nn.Parameter(torch.arange(3), requires_grad=False)), parameters="spare"),
        "'spare' is int64",
    ),
    Case(
        "model: complex",
        lambda: loss_of(Holding(nn.Parameter(torch.ones(2, dtype=torch.complex64)))),
        "'spare' is complex64",
    ),
    Case("model: on meta", lambda: loss_of(net().to("meta")), "on the meta device"),
    Case("model: lazy", lambda: loss_of(nn.LazyLinear(4)), "has no shape yet"),
    Case(
        "model: on two devices",
        lambda: loss_of(Holding(nn.Parameter(torch.ones(2, device="meta")))),
        "the meta device",
    ),
    Case(
        "model: does not take a key",
        lambda: loss_of(PlainArgument(), data=[{"x": X, "path": "a", "labels": Y}]),
        "entries 'x', 'path'",
    ),
    Case(
        "model: takes other keys",
        lambda: loss_of(PlainArgument(), data=[{"image": X, "labels": Y}]),
        "entries 'image'",
    ),
    Case("model: in training, batch norm and dropout", partial(normed, True)),
    Case("model: in evaluation, batch norm and dropout", partial(normed, False)),
    Case("model: float32", partial(half, torch.float32, 1e-6, False)),
    Case("model: float32 in float64", partial(half, torch.float32, 1e-12, True)),
    Case("model: bfloat16", partial(half, torch.bfloat16, 0.05, False)),
    Case("model: bfloat16 in float64", partial(half, torch.bfloat16, 1e-12, True)),
    Case("model: float16", partial(half, torch.float16, 0.01, False)),
    Case("model: float16 in float64", partial(half, torch.float16, 1e-12, True)),
    Case("within no_grad", partial(under, torch.no_grad)),
    Case("within inference_mode", partial(under, torch.inference_mode)),
    Case("memory: one byte", lambda: right(loss_of(data=cut((5, 7)), memory_limit=1), mean_of())),
    Case(
        "memory: one byte, its own mode",
        lambda: right(loss_of(data=cut((5, 7)), memory_limit=1), mean_of(), None),
    ),
    Case("mode: none such", lambda: loss_of().hessian("fast"), "no mode 'fast'"),  # type: ignore[arg-type]
    Case(
        "Gauss-Newton without outputs",
        lambda: Loss(
            net(), None, (X, Y), batch_loss=lambda m, b: F.cross_entropy(m(b[0]), b[1])
        ).gauss_newton(),
        "needs the model's outputs",
    ),
    Case("subset: an iterable", lambda: fixed_subset(Endless()), "needs a map-style Dataset"),
    Case(
        "subset: batches of nothing",
        lambda: fixed_subset(TensorDataset(X, Y), batch_size=0),
        "batch_size is 0",
    ),
    Case("subset: a seed below nothing", lambda: fixed_subset(TensorDataset(X, Y), seed=-1), "seed -1"),
    Case("subset: nothing of it", lambda: fixed_subset(TensorDataset(X, Y), 0), "fraction is 0"),
    Case("subset: NaN of it", lambda: fixed_subset(TensorDataset(X, Y), float("nan")), "fraction is nan"),
    Case("subset: too few labels", lambda: fixed_subset(TensorDataset(X, Y), labels=[1]), "1 labels for 12"),
    Case("subset: an empty data set", lambda: fixed_subset(TensorDataset(X[:0], Y[:0])), "is empty"),
    Case("subset: a broken file", lambda: fixed_subset(Broken(), 1.0), "cannot be read"),
    Case("subset: unlike shapes", lambda: fixed_subset(Items([X[0], X[0, :2]]), 1.0), "cannot be read"),
    Case("a loss for its gradient", overlap, "loss.gradient()"),
    Case("a folder for a file", saved_to_a_folder, "is a folder"),
]


class PlainArgument(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def right_when_frozen() -> None:
    model = net().requires_grad_(False)
    loss = Loss(model, F.cross_entropy, (X, Y), parameters="*")
    _ = loss.hessian("retained") @ np.ones(loss.size)
    assert not any(p.requires_grad for p in model.parameters())
    model.requires_grad_(True)
    right(loss, mean_of())
