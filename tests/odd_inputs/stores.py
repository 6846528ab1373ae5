"""Feature stores, fits and controls with numbers, tables, models and batches that nobody expects."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probes import (
    ArrayFeatures,
    FeatureStore,
    code_length,
    evaluate_probes,
    fit_probes,
    learning_curve,
    nearest_neighbours,
    ridge,
    selectivity,
    with_labels,
)

from ..probes.fitting import clusters, optimum
from . import Case
from .data import Given

NAN, INF = math.nan, math.inf
X, Y = clusters(60, 4, 3)
TABLE = ArrayFeatures({"x": X}, Y)


def quiet(call: Callable[..., Any], **options: Any) -> Any:
    return call(train=TABLE, progress=False, **{"l2": 0.1, **options})


# -- numbers ---------------------------------------------------------------------------------------------

WRONG_STRENGTHS: dict[str, tuple[Any, str]] = {
    "0": (0, "l2=0, but it has to be a finite number above 0"),
    "below 0": (-1e-3, "l2=-0.001, but"),
    "NaN": (NAN, "l2=nan, but"),
    "infinite": (INF, "l2=inf, but"),
    "text": ("1e-3", "l2='1e-3', but"),
    "a truth": (True, "l2=True, but"),
    "complex": (1j, "l2=1j, but"),
    "none of several": ([], "l2 is empty"),
    "one NaN of several": ([1e-1, NAN], "l2=nan, but"),
    "several in an array": (np.array([0.1, 0.01]), "choosing among 2 strengths"),
}
STRENGTH_USERS = {
    "fit_probes": partial(quiet, fit_probes),
    "ridge": partial(quiet, ridge),
    "selectivity": partial(quiet, selectivity),
    "code_length": partial(quiet, code_length),
    "learning_curve": partial(quiet, learning_curve),
}
WRONG_NUMBERS: dict[str, tuple[Callable[[], Any], str]] = {
    "tol=0": (lambda: quiet(fit_probes, tol=0), "tol=0, but it has to be a finite number above 0"),
    "tol=nan": (lambda: quiet(fit_probes, tol=NAN), "tol=nan, but"),
    "tol=inf": (lambda: quiet(fit_probes, tol=INF), "tol=inf, but"),
    "tol as text": (lambda: quiet(fit_probes, tol="1e-6"), "tol='1e-6', but"),
    "max_iter=0": (lambda: quiet(fit_probes, max_iter=0), "max_iter=0, but it has to be a whole number of"),
    "max_iter=2.5": (lambda: quiet(fit_probes, max_iter=2.5), "max_iter=2.5, but"),
    "max_iter=-1": (lambda: quiet(fit_probes, max_iter=-1), "max_iter=-1, but"),
    "memory=-1": (lambda: quiet(fit_probes, memory=-1), "memory=-1, but"),
    "memory=2e9": (lambda: quiet(fit_probes, memory=2e9), "memory=2000000000.0, but"),
    "num_classes=1": (lambda: quiet(fit_probes, num_classes=1), "num_classes=1, but it has to be a whole"),
    "num_classes=3.0": (lambda: quiet(fit_probes, num_classes=3.0), "num_classes=3.0, but"),
    "num_classes=True": (lambda: quiet(fit_probes, num_classes=True), "num_classes=True, but"),
    "a device that is none": (lambda: quiet(fit_probes, device="gpu"), "device='gpu' is not there"),
    "a device that is absent": (lambda: quiet(fit_probes, device="cuda:77"), "device='cuda:77' is not there"),
    "a start that is none": (lambda: quiet(fit_probes, start=X), "start is a ndarray"),
    "early stopping without rows": (lambda: quiet(fit_probes, early_stopping=True), "give valid="),
    "k=0": (
        lambda: nearest_neighbours(train=TABLE, test=TABLE, k=0),
        "k=0, but it has to be a whole",
    ),
    "k=2.5": (lambda: nearest_neighbours(train=TABLE, test=TABLE, k=2.5), "k=2.5, but"),  # type: ignore[arg-type]
    "k beyond the rows": (
        lambda: nearest_neighbours(train=TABLE, test=TABLE, k=61),
        "k=61: train has 60 rows",
    ),
    "memory of neighbours": (
        lambda: nearest_neighbours(train=TABLE, test=TABLE, memory=-5),
        "memory=-5, but",
    ),
    "memory of ridge": (lambda: quiet(ridge, memory=0.5), "memory=0.5, but"),
    "a seed of code_length": (lambda: quiet(code_length, seed=-1), "seed=-1, but"),
    "a seed of selectivity": (lambda: quiet(selectivity, seed=1.5), "seed=1.5, but"),
    "a seed of a curve": (lambda: quiet(learning_curve, seed="0"), "seed='0', but"),
    "no sizes": (lambda: quiet(learning_curve, sizes=[]), "sizes is empty"),
    "a size of 0": (lambda: quiet(learning_curve, sizes=[0, 60]), "sizes=0, but"),
    "half a row": (lambda: quiet(learning_curve, sizes=[10.5]), "sizes=10.5, but"),
    "more rows than there are": (lambda: quiet(learning_curve, sizes=[61]), "a learning curve to 61 rows"),
    "too few groups": (
        lambda: quiet(selectivity, test=TABLE, groups=np.arange(3), test_groups=np.arange(60)),
        "groups has shape (3,); give the number of each row's group, shape (60,)",
    ),
    "groups of test in a matrix": (
        lambda: quiet(selectivity, test=TABLE, groups=np.arange(60), test_groups=np.zeros((60, 1))),
        "test_groups has shape (60, 1)",
    ),
    "groups alone": (lambda: quiet(selectivity, groups=np.arange(60)), "give all three, or none"),
}


# -- tables ----------------------------------------------------------------------------------------------


def table(x: Any = X, y: Any = Y) -> Any:
    return fit_probes(ArrayFeatures({"x": x}, y), l2=0.1, progress=False)


TABLES: dict[str, tuple[Callable[[], Any], str]] = {
    "an array for a table": (lambda: fit_probes(X, l2=0.1), "train is a ndarray; give a FeatureStore"),  # type: ignore[arg-type]
    "a path for a table": (lambda: fit_probes("runs/x", l2=0.1), "train is a str; give a"),  # type: ignore[arg-type]
    "an array to validate on": (lambda: quiet(fit_probes, valid=X), "valid is a ndarray; give"),
    "no layers": (lambda: fit_probes(ArrayFeatures({}, Y), l2=0.1), "train has no layers"),
    "no rows": (lambda: table(X[:0], Y[:0]), "train has no rows"),
    "no columns": (lambda: table(X[:, :0]), "at least one column"),
    "one row": (lambda: table(X[:1], Y[:1]), "all rows of train have label"),
    "complex features": (lambda: table(X + 0j), "are complex64; a classifier reads real numbers"),
    "features of text": (lambda: table(X.astype(str)), "a classifier reads real numbers"),
    "objects": (lambda: table(X.astype(object)), "are object; a classifier reads real numbers"),
    "a vector": (lambda: table(X[:, 0]), "have shape (60,)"),
    "images": (lambda: table(X.reshape(60, 2, 2)), "have shape (60, 2, 2)"),
    "NaN": (lambda: table(np.where(X > 2, NAN, X)), "hold NaN or infinite values"),
    "infinity": (lambda: table(np.where(X > 2, INF, X)), "hold NaN or infinite values"),
    "float labels": (lambda: table(y=Y.astype(float)), "labels are float64 of shape (60,)"),
    "labels in a column": (lambda: table(y=Y[:, None]), "labels are int64 of shape (60, 1)"),
    "text labels": (lambda: table(y=Y.astype(str)), "give one whole number per row"),
    "boolean labels": (lambda: table(y=Y > 0), "labels are bool"),
    "labels below 0": (lambda: table(y=Y - 1), "train has label -1"),
    "one class": (lambda: table(y=0 * Y), "all rows of train have label 0"),
    "other labels of another length": (lambda: with_labels(TABLE, Y[:3]), "with 3 labels"),
    "probes on nothing": (
        lambda: evaluate_probes(quiet(fit_probes), ArrayFeatures({"x": X[:0]}, Y[:0])),
        "test has no rows",
    ),
    "too many classes for so few": (
        lambda: quiet(code_length, num_classes=2),
        "label 2, which is out of range",
    ),
}


def agrees(x: Any, y: Any = Y, tolerance: float = 1e-6) -> None:
    """The fit is the optimum that SciPy finds in float64."""
    least, _ = optimum(np.asarray(x, dtype=np.float64), np.asarray(y).astype(np.int64), 0.1)
    found = table(x, y).path[0].objective
    assert abs(found - least) <= tolerance * least


def same_as_at_scale(scale: float) -> None:
    found, expected = (table(x).path[0].objective for x in (X * np.float32(scale), X))
    assert abs(found - expected) <= 1e-6 * expected


GOOD: dict[str, Callable[[], Any]] = {
    "half precision": lambda: agrees(X.astype(np.float16)),
    "double precision": lambda: agrees(X.astype(np.float64)),
    "big-endian": lambda: agrees(X.astype(">f4")),
    "Fortran order": lambda: agrees(np.asfortranarray(X)),
    "every second column": lambda: agrees(X[:, ::2]),
    "rows backwards": lambda: agrees(X[::-1], Y[::-1]),
    "integers": lambda: agrees((100 * X).astype(np.int16)),
    "bytes": lambda: agrees(np.abs(20 * X).astype(np.uint8)),
    "truths": lambda: agrees(X > 0),
    "a list of lists": lambda: agrees(X.tolist()),
    "tiny numbers": lambda: same_as_at_scale(1e-30),
    "large numbers": lambda: same_as_at_scale(1e30),
    "far from 0": lambda: agrees(X.astype(np.float64) + 1e6),
    "a constant column": lambda: agrees(np.c_[X, np.full(60, 7.0)]),
    "the same column twice": lambda: agrees(np.c_[X, X]),
    "more columns than rows": lambda: agrees(np.tile(X, 20)[:10], np.r_[Y[:9], (Y[8] + 1) % 3]),
    "unsigned labels": lambda: agrees(X, Y.astype(np.uint8)),
    "two rows": lambda: agrees(np.array([[0.0], [1.0]]), np.array([0, 1])),
    "a table of one column": lambda: agrees(X[:, :1]),
    "NumPy's numbers": lambda: quiet(
        fit_probes, l2=np.float32(0.1), max_iter=np.int64(50), num_classes=np.int8(3)
    ),
    "a strength twice": lambda: quiet(fit_probes, l2=[0.1, 0.1]),
    "one strength of a code": lambda: quiet(code_length, l2=0.1),
    "no memory": lambda: quiet(fit_probes, memory=0),
    "a curve of all rows": lambda: quiet(learning_curve, sizes=(60,)),
    "every row a neighbour": lambda: nearest_neighbours(train=TABLE, test=TABLE, k=60, progress=False),
}


# -- stores ----------------------------------------------------------------------------------------------


DATA = TensorDataset(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def extract(model: Any = None, source: Any = None, path: Any = "store", **options: Any) -> FeatureStore:
    options = {"layers": ["0", "output"], "progress": False, **options}
    source = DataLoader(DATA, 4) if source is None else source
    return FeatureStore.extract(net() if model is None else model, source, path, **options)


def scaled(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    return 2 * model(batch[0]), batch[1]


def on_its_own(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    return None, batch[1]


BATCH = (torch.zeros(4, 4), torch.arange(4))
STORES: dict[str, tuple[Callable[[], Any], str]] = {
    "a seed of 1.5": (lambda: extract(seed=1.5), "seed=1.5, but it has to be a whole number"),
    "a seed of text": (lambda: extract(seed="0"), "seed='0', but"),
    "a seed that is a truth": (lambda: extract(seed=True), "seed=True, but"),
    "float64": (lambda: extract(dtype="float64"), "dtype='float64' cannot be stored"),
    "torch's dtype": (lambda: extract(dtype=torch.float32), "dtype=torch.float32 cannot be stored"),
    "autocast=True": (lambda: extract(autocast=True), "autocast=True is no mixed precision"),
    "autocast to float32": (lambda: extract(autocast=torch.float32), "autocast=torch.float32 is no mixed"),
    "autocast to integers": (lambda: extract(autocast=torch.int8), "autocast=torch.int8 is no"),
    "a forward that is none": (lambda: extract(forward="forward"), "forward='forward' is no function"),
    "no path": (lambda: extract(path=""), "path='' is no folder"),
    "a number for a path": (lambda: extract(path=7), "path=7 is no folder"),
    "a number for a path to open": (lambda: FeatureStore.open(7), "path=7 is no folder"),  # type: ignore[arg-type]
    "a path that is a file": (lambda: (Path("store").write_text(""), extract()), "store"),
    "a function for a model": (lambda: extract(model=lambda x: x), "the model is a function"),
    "a class for a model": (lambda: extract(model=nn.ReLU), "the model is a type"),
    "a number for a loader": (lambda: extract(source=7), "the loader is a int"),
    "an iterator": (lambda: extract(source=iter([BATCH])), "only once"),
    "a generator": (lambda: extract(source=(b for b in [BATCH])), "only once"),
    "no batches": (lambda: extract(source=[]), "gave no batch"),
    "no data": (lambda: extract(source=DataLoader(TensorDataset(torch.zeros(0, 4)), 4)), "gave no batch"),
    "batches without labels": (lambda: extract(source=[torch.zeros(4, 4)]), "neither (x, y) nor dicts"),
    "text labels": (
        lambda: extract(source=DataLoader(Given(*[(torch.zeros(4), "a")] * 4), 2)),
        "the labels are no numbers",
    ),
    "complex labels": (lambda: extract(source=[(torch.zeros(4, 4), torch.ones(4) * 1j)]), "are complex"),
    "fewer labels": (lambda: extract(source=[(torch.zeros(4, 4), torch.arange(3))]), "4 rows for a batch"),
    "a label without rows": (lambda: extract(source=[(torch.zeros(4, 4), torch.tensor(1))]), "one per"),
    "a forward without the model": (lambda: extract(forward=on_its_own), "did not call the model"),
    "shuffled rows": (lambda: extract(source=DataLoader(DATA, 4, shuffle=True)), "shuffle=False"),
    "a layer that is none": (lambda: extract(layers=["7"]), "no layer matches '7'"),
    "no layers asked for": (lambda: extract(layers=[]), "no layers were asked for"),
    "a NaN example": (
        lambda: extract(source=[(torch.full((4, 4), NAN), torch.arange(4))]), "gives NaN or infinite",
    ),
    "features past float16": (
        lambda: extract(source=[(torch.full((4, 4), 1e30), torch.arange(4))], dtype="float16"), "beyond",
    ),
    "a lazy model": (lambda: extract(nn.Sequential(nn.LazyLinear(3)), layers=["0"]), "has no weights yet"),
    "a model without values": (lambda: extract(nn.Linear(4, 3, device="meta"), layers=["output"]),
                               "has no weights yet"),
    "a store that is not there": (lambda: FeatureStore.open("nowhere"), "does not exist"),
    "a checkpoint that is not there": (lambda: (extract(), FeatureStore.open("store", "abc")), "and not abc"),
    "labels of several sets": (
        lambda: extract(forward=lambda m, b: (m(b[0]), {"a": b[1], "b": b[1]})).labels, "take one from",
    ),
    "a layer that is not stored": (lambda: extract()["1"], "the store has no layer '1'"),
}  # fmt: skip


def then(first: dict[str, Any], second: dict[str, Any]) -> None:
    extract(**first)
    extract(**second)


def with_row(row: int, by: float = 1.0) -> DataLoader[Any]:
    x = DATA.tensors[0].clone()
    x[row, 3] += by
    return DataLoader(TensorDataset(x, DATA.tensors[1]), 4)


def hooked() -> nn.Module:
    model = net()
    model[0].register_forward_hook(lambda m, a, out: out * 1.01)
    return model


def flipped() -> nn.Module:
    model = net()
    model[1] = nn.Sequential(nn.ReLU())
    model[1].forward = torch.tanh  # type: ignore[method-assign]
    return model


LATER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fewer rows": (
        {},
        {"source": DataLoader(TensorDataset(*DATA[:8]), 4)},
        "the loader has 8 rows",
    ),
    "more rows": ({}, {"source": list(DataLoader(DATA, 4)) * 2}, "the loader has 20 rows"),
    **{f"another row {i}": ({}, {"source": with_row(i)}, f"the inputs of row {i} differ") for i in range(10)},
    "a row by rounding": ({}, {"source": with_row(5, 1e-6)}, "the inputs of row 5 differ"),
    "a hook": ({}, {"model": hooked()}, "gives other features of layer '0'"),
    "a hook, for more layers": (
        {},
        {"model": hooked(), "layers": ["1"]},
        "gives other features of layer '0'",
    ),
    "another seed": ({}, {"seed": 1}, "seed=0"),
    "another dtype": ({}, {"dtype": "float16"}, "dtype='float32'"),
    "mixed precision": ({}, {"autocast": torch.bfloat16}, "autocast=None"),
    "another reduction": ({}, {"reduce": "subset:2"}, "reduced by 'flatten'"),
    "other label sets": ({}, {"forward": lambda m, b: (m(b[0]), {"a": b[1]})}, "the labels are"),
    "float labels": ({}, {"forward": lambda m, b: (m(b[0]), b[1].float())}, "the labels are"),
    "other labels by forward": (
        {},
        {"forward": lambda m, b: (m(b[0]), b[1] + 1)},
        "the labels of row 0",
    ),
    "inputs scaled by forward": ({}, {"forward": lambda m, b: (m(1.1 * b[0]), b[1])}, "gives other features"),
}


def passes(**second: Any) -> None:
    """The same features come back."""
    first, again = extract(), extract(**second)
    for layer in first.layers:
        assert np.array_equal(first[layer], again[layer])


def wrapped() -> nn.Module:
    return torch.compile(net(), backend="eager")  # type: ignore[return-value]


def thawed() -> nn.Module:
    model = net().train()
    model[0].weight.requires_grad_(False)
    return model


SAME: dict[str, Callable[[], Any]] = {
    "once more": passes,
    "other batches": lambda: passes(source=DataLoader(DATA, 3)),
    "one row at a time": lambda: passes(source=DataLoader(DATA, 1)),
    "everything at once": lambda: passes(source=DataLoader(DATA, 100)),
    "a list of batches": lambda: passes(source=list(DataLoader(DATA, 4))),
    "examples from elsewhere": lambda: passes(source=DataLoader(Given(*DATA), 4)),
    "in training mode": lambda: passes(model=net().train()),
    "with frozen weights": lambda: passes(model=thawed()),
    "a hook that only looks": lambda: passes(
        model=(lambda m: (m.register_forward_hook(lambda *_: None), m)[1])(net())
    ),
    "the output doubled by forward": lambda: passes(forward=scaled),
    "a folder by its Path": lambda: passes(path=Path("store")),
    "one of the layers": lambda: passes(layers=["0", "output"], exclude=["1"]),
    "NumPy's seed": lambda: passes(seed=np.int64(0)),
    "without gradients": lambda: torch.no_grad()(passes)(),
    "in inference mode": lambda: torch.inference_mode()(passes)(),
}

CASES = [
    *(Case(f"{user}: l2 is {name}", partial(use, l2=l2), sentence)
      for name, (l2, sentence) in WRONG_STRENGTHS.items() for user, use in STRENGTH_USERS.items()
      if not (name == "several in an array" and user in ("selectivity", "code_length"))),
    *(Case(name, use, sentence) for name, (use, sentence) in WRONG_NUMBERS.items()),
    *(Case(f"table of {name}", use, sentence) for name, (use, sentence) in TABLES.items()),
    *(Case(f"fit of {name}", use) for name, use in GOOD.items()),
    *(Case(f"store: {name}", use, sentence) for name, (use, sentence) in STORES.items()),
    *(Case(f"store, then {name}", partial(then, *both), sentence)
      for name, (*both, sentence) in LATER.items()),
    *(Case(f"store, {name}", use) for name, use in SAME.items()),
]  # fmt: skip
