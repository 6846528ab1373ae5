"""A feature store is that of one computation on certain rows: whatever else has changed is noticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from probes import FeatureStore, ProbeError
from probes.digests import input_digests, model_digest
from probes.store import writer
from probes.store.holdings import holdings_digest
from probes.store.recognition import require_same_features
from probes.store.records import checksum

from .models import CLASSES, seed_everything

ROWS = 40


class Net(nn.Module):
    """Reads a buffer that is not saved, an attribute, and its submodules' modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, CLASSES)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("mask", torch.ones(8), persistent=False)
        self.slope = 0.1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.leaky_relu(self.norm(self.first(x)), self.slope) * self.mask)


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, 6, generator=g), torch.randint(CLASSES, (ROWS,), generator=g)


def loader(x: torch.Tensor | None = None, y: torch.Tensor | None = None, batch: int = 4) -> Any:
    own = tensors()
    return DataLoader(TensorDataset(own[0] if x is None else x, own[1] if y is None else y), batch)


def net() -> Net:
    seed_everything()
    return Net()


def extract(path: Path, model: nn.Module | None = None, source: Any = None, **options: Any) -> FeatureStore:
    options = {"layers": ["first", "output"], "progress": False, **options}
    source = loader() if source is None else source
    return FeatureStore.extract(model or net(), source, path / "store", **options)


def changed(**attributes: Any) -> Net:
    model = net()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def ablated(layer: str, unit: int | slice) -> Net:
    model = net()

    def ablate(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, unit] = 0
        return out

    model.get_submodule(layer).register_forward_hook(ablate)
    return model


def scaled(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    return model(batch[0] * 1.01), batch[1]


def rewired() -> Net:
    model = net()
    model.forward = lambda x: model.second(model.norm(model.first(x)))  # type: ignore[method-assign]
    return model


class AlwaysNoisy(nn.Module):
    """Does not heed `eval()`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5, training=True)


def other_norm() -> Net:
    model = net()
    model.norm.eps = 0.1  # a number that the model's own text shows
    return model


COMPUTATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "an attribute": lambda: {"model": changed(slope=0.2)},
    "a unit ablated by a hook": lambda: {"model": ablated("first", 3)},
    "a unit of the last layer ablated": lambda: {"model": ablated("second", 0)},
    "forward=": lambda: {"forward": scaled},
    "a function in place of a module's forward": lambda: {
        "model": rewired(),
    },
    "noise in eval mode": lambda: {"model": noisy()},
}


def noisy() -> Net:
    model = net()
    model.norm.register_forward_pre_hook(lambda _, args: (AlwaysNoisy()(args[0]),))
    return model


@pytest.mark.parametrize("change", COMPUTATIONS)
@pytest.mark.parametrize("layers", [["first", "output"], ["norm", "output"]], ids=["the same", "more layers"])
def test_another_computation_is_refused(tmp_path: Path, change: str, layers: list[str]) -> None:
    extract(tmp_path)
    with pytest.raises(ProbeError, match=r"gives other features of layer '(first|output)' than are"):
        extract(tmp_path, layers=layers, **COMPUTATIONS[change]())


def test_layers_that_nobody_asks_for_are_compared_as_they_were_reduced(tmp_path: Path) -> None:
    extract(tmp_path, layers=["first"], reduce="subset:3", seed=1)
    options: dict[str, Any] = {
        "layers": ["norm", "output"],
        "exclude": "first",
        "reduce": "flatten",
        "seed": 1,
    }
    with pytest.raises(ProbeError, match=r"gives other features of layer 'first' than are"):
        extract(tmp_path, ablated("first", slice(None)), **options)
    assert extract(tmp_path, **options).layers == ("norm", "output")
    opened = FeatureStore.open(tmp_path / "store")
    assert [(layer, opened[layer].shape[1]) for layer in opened.layers] == [
        ("first", 3),
        ("norm", 8),
        ("output", CLASSES),
    ]


@pytest.mark.parametrize("change", COMPUTATIONS)
def test_another_computation_does_not_go_on_with_what_was_begun(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_INTERVAL", 0.0)
    monkeypatch.setattr(writer, "_PATIENCE", 0.0)
    with pytest.raises(RuntimeError, match="stop"):
        extract(tmp_path, source=DataLoader(Stopping(), 4))
    with pytest.raises(ProbeError, match=r"the model gives other features of layer"):
        extract(tmp_path, **COMPUTATIONS[change]())


@pytest.mark.parametrize("kind", ["tensors", "a list of batches"])
def test_another_row_does_not_go_on_with_what_was_begun(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_INTERVAL", 0.0)
    monkeypatch.setattr(writer, "_PATIENCE", 0.0)
    x, y = tensors()
    make = partial(KINDS[kind], tmp_path)

    def stopping(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        if torch.equal(batch[0], x[28:32]):
            raise RuntimeError("stop")
        return model(batch[0]), batch[1]

    with pytest.raises(RuntimeError, match="stop"):
        extract(tmp_path, source=make(x, y), forward=stopping)
    with pytest.raises(ProbeError, match="the inputs of row 14 differ from those in the store"):
        extract(tmp_path, source=make(with_pixel(14, 5), y))
    assert extract(tmp_path, source=make(with_pixel(30, 5), y)).n == ROWS, "it was not begun with that row"


class Stopping(Dataset[Any]):
    def __init__(self) -> None:
        self.own = TensorDataset(*tensors())

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> Any:
        if i >= ROWS - 6:
            raise RuntimeError("stop")
        return self.own[i]


def quantised(flip: bool = False) -> nn.Module:
    """A linear layer whose weights PyTorch keeps packed."""
    linear = net().first
    if flip:
        linear.weight.data.neg_()
    module = torch.ao.nn.quantized.dynamic.Linear(6, 8)
    weight = torch.quantize_per_tensor(linear.weight.detach(), 0.01, 0, torch.qint8)
    module.set_weight_bias(weight, linear.bias.detach())
    return nn.Sequential(module)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's quantisation is to move elsewhere
@pytest.mark.parametrize(
    ("make", "other"),
    [
        (net, lambda: changed(mask=torch.arange(8.0))),
        (net, other_norm),
        (net, lambda: net().double().float().bfloat16()),
        (lambda: net().bfloat16(), lambda: net().half()),
        (quantised, lambda: quantised(flip=True)),
    ],
    ids=["unsaved buffer", "eps", "dtype", "half", "quantised weights"],
)
def test_other_weights_and_buffers_are_another_checkpoint(
    make: Callable[[], nn.Module], other: Callable[[], nn.Module]
) -> None:
    assert model_digest(make()) == model_digest(make())
    assert model_digest(make()) != model_digest(other())


def test_an_unsaved_buffer_gives_its_own_features(tmp_path: Path) -> None:
    plain, masked = extract(tmp_path), extract(tmp_path, changed(mask=torch.arange(8.0)))
    assert plain.model != masked.model
    assert not np.array_equal(plain["output"], masked["output"])


def test_a_model_without_weights_yet(tmp_path: Path) -> None:
    for model in (nn.Sequential(nn.LazyLinear(3)), nn.Linear(6, 3, device="meta")):
        with pytest.raises(ProbeError, match="has no weights yet"):
            extract(tmp_path, model, layers=["output"])


def test_a_store_of_the_version_before_is_refused(tmp_path: Path) -> None:
    store = extract(tmp_path)
    for name in ("data.json", f"{store.model[:12]}/manifest.json"):
        record = json.loads((store.path / name).read_bytes())
        del record["sha256"]
        record["format"] = 1
        (store.path / name).write_text(json.dumps({**record, "sha256": checksum(record)}))
    for use in (lambda: extract(tmp_path), lambda: FeatureStore.open(store.path)):
        with pytest.raises(ProbeError, match=r"json was written by another version"):
            use()


# -- rows ------------------------------------------------------------------------------------------------


def with_pixel(row: int, column: int) -> torch.Tensor:
    x = tensors()[0].clone()
    x[row, column] += 1
    return x


def with_label(row: int) -> torch.Tensor:
    y = tensors()[1].clone()
    y[row] = (y[row] + 1) % CLASSES
    return y


class Own(Dataset[Any]):
    """A data set of somebody's own, in memory."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.examples = {"x": [row.numpy() for row in x], "y": y.tolist()}

    def __len__(self) -> int:
        return len(self.examples["y"])

    def __getitem__(self, i: int) -> Any:
        return self.examples["x"][i], self.examples["y"][i]


class Stream(IterableDataset[Any]):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        yield from zip(self.x, self.y, strict=True)


class OnDisk(Dataset[Any]):
    """A file per example."""

    def __init__(self, folder: Path, x: torch.Tensor, y: torch.Tensor) -> None:
        folder.mkdir(exist_ok=True)
        self.samples = []
        for i, (row, label) in enumerate(zip(x, y, strict=True)):
            path = folder / f"{i}.npy"
            if not path.exists() or not np.array_equal(np.load(path), row.numpy()):
                np.save(path, row.numpy())
            self.samples.append((str(path), int(label)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        path, label = self.samples[i]
        return np.load(path), label


KINDS: dict[str, Callable[[Path, torch.Tensor, torch.Tensor], Any]] = {
    "tensors": lambda _, x, y: loader(x, y),
    "a subset": lambda _, x, y: DataLoader(Subset(TensorDataset(x, y), range(ROWS)), 4),
    "a list of batches": lambda _, x, y: list(loader(x, y)),
    "a stream": lambda _, x, y: DataLoader(Stream(x, y), 4),
    "somebody's own": lambda _, x, y: DataLoader(Own(x, y), 4),
    "files": lambda folder, x, y: DataLoader(OnDisk(folder / "data", x, y), 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [1, 9, 14, 27, ROWS - 1])
def test_any_other_row_is_refused(tmp_path: Path, kind: str, row: int) -> None:
    x, y = tensors()
    make = partial(KINDS[kind], tmp_path)
    store = extract(tmp_path, source=make(x, y))
    same = extract(tmp_path, source=make(x.clone(), y.clone()))
    assert np.array_equal(store["output"], same["output"])
    for other in ((with_pixel(row, 5), y), (x, with_label(row))):
        with pytest.raises(ProbeError, match=f"the inputs of row {row} differ from those in the store"):
            extract(tmp_path, source=make(*other))


def test_rows_in_another_order(tmp_path: Path) -> None:
    data = TensorDataset(*tensors())
    order = list(range(ROWS))
    extract(tmp_path, source=DataLoader(Subset(data, order), 4))
    order[9], order[14] = order[14], order[9]
    for source in (DataLoader(Subset(data, order), 4), DataLoader(data, 4, sampler=order)):
        with pytest.raises(ProbeError, match="the inputs of row 9 differ"):
            extract(tmp_path, source=source)


def test_every_number_of_an_example_counts() -> None:
    x = torch.randn(3, 1, 50, 50)
    y = torch.arange(3)
    before = input_digests([x, y], 3)
    for pixel in range(0, 2500, 7):
        other = x.clone()
        other[1].view(-1)[pixel] *= -1
        assert (input_digests([other, y], 3) != before).tolist() == [False, True, False]


BATCHES: dict[str, tuple[Any, Any]] = {
    "sign of two numbers": (torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, -2.0]])),
    "order in a row": (torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])),
    "bool": (torch.tensor([[True, False]]), torch.tensor([[True, True]])),
    "complex": (torch.tensor([[1j]]), torch.tensor([[-1j]])),
    "a time-first sequence": (torch.zeros(5, 1, 2), torch.ones(5, 1, 2)),
    "numpy": (np.zeros((1, 2)), np.ones((1, 2))),
    "text": (["a dog"], ["a cat"]),
    "a number": (3, 4),
    "nothing": (None, 0),
    "a sparse tensor": (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
    "a view that is conjugate": (torch.tensor([[1j]]), torch.tensor([[1j]]).conj()),
    "packed": tuple(
        nn.utils.rnn.pack_padded_sequence(torch.full((1, 3, 2), v), [3], batch_first=True) for v in (0.0, 1.0)
    ),
    "nested": tuple(
        torch.nested.nested_tensor([torch.full((2, 2), v)], layout=torch.jagged) for v in (0.0, 1.0)
    ),
    "a mapping": ({"pixel_values": torch.zeros(1, 2)}, {"pixel_values": torch.ones(1, 2)}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_whatever_a_batch_holds_counts(kind: str) -> None:
    one, other = BATCHES[kind]
    y = torch.zeros(1)
    assert input_digests([one, y], 1) == input_digests([one, y], 1)
    assert input_digests([one, y], 1) != input_digests([other, y], 1)


def test_digests_of_rows_do_not_depend_on_the_batch() -> None:
    x, text = torch.randn(6, 3), [f"row {i}" for i in range(6)]
    whole = input_digests([x, text], 6)
    parts = [input_digests([x[i : i + 2], text[i : i + 2]], 2) for i in (0, 2, 4)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert len(set(whole.tolist())) == 6


def test_files_that_were_copied_are_read_and_pass(tmp_path: Path) -> None:
    data = OnDisk(tmp_path / "data", *tensors())
    source = DataLoader(data, 4)
    extract(tmp_path, source=source)
    before = holdings_digest(data)
    for path, _ in data.samples:
        os.utime(path, ns=(1, 1))
    assert holdings_digest(data) != before
    assert extract(tmp_path, source=source).n == ROWS


def test_settings_that_change_all_rows_show_in_the_first(tmp_path: Path) -> None:
    class Scaled(Own):
        factor = 1.0

        def __getitem__(self, i: int) -> Any:
            x, y = super().__getitem__(i)
            return self.factor * x, y

    data = Scaled(*tensors())
    extract(tmp_path, source=DataLoader(data, 4))
    data.factor = 2.0
    with pytest.raises(ProbeError, match="the inputs of row 0 differ"):
        extract(tmp_path, source=DataLoader(data, 4))


class Anything:
    __slots__ = ("kept",)

    def __init__(self, kept: Any) -> None:
        self.kept = kept


def test_holdings_are_what_a_data_set_keeps(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"1")
    mapped = np.memmap(file, np.uint8, "r")
    for one, other in [
        (np.zeros(3), np.ones(3)),
        (torch.zeros(3), torch.zeros(4)),
        ([1, 2], [2, 1]),
        ([1, "a"], [1, "b"]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        ({1, "a"}, {1, "b"}),
        (range(3), range(4)),
        (b"1", b"2"),
        (np.array(["a", [1]], dtype=object), np.array(["a", [2]], dtype=object)),
        (mapped, mapped[:0]),
        (Anything([1]), Anything([2])),
    ]:
        assert holdings_digest(Anything(one)) == holdings_digest(Anything(one))
        assert holdings_digest(Anything(one)) != holdings_digest(Anything(other))
    assert holdings_digest(Anything(0.002)) == holdings_digest(Anything(3)), "a setting concerns all rows"
    endless: list[Any] = []
    endless.append(endless)
    holdings_digest(endless, lambda: 1, threadless := Anything(None), threadless)


# -- rounding --------------------------------------------------------------------------------------------


def test_rounding_passes_and_more_does_not() -> None:
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((8, 50)) * np.geomspace(1e-3, 1e3, 50)
    stored[:, 7] = 0  # a unit that is off
    size = np.sqrt(np.square(stored).mean(0))
    noise = rng.uniform(-1, 1, stored.shape)
    check = partial(require_same_features, "x", 100, stored, store=Path("s"))
    check(stored, 1e-3)
    check(stored + 0.9e-3 * size * noise, 1e-3)
    check(stored + 1e-6 * noise, 1e-3)
    for row, column in ((0, 49), (7, 49)):
        other = stored.copy()
        other[row, column] += 1.2e-3 * size[column]  # beyond the floor, a tenth of the layer's size
        check(other, 2e-3)
        with pytest.raises(ProbeError, match=f"for row {100 + row}\\)"):
            check(other, 1e-3)
    off = np.zeros((8, 2))  # a layer that is off
    on = np.where(np.arange(8)[:, None] == 3, 0.1, off)
    with pytest.raises(ProbeError, match=r"0\.1 and not 0 for row 103"):
        require_same_features("x", 100, off, on, 1e-3, Path("s"))
    gone = stored.copy()
    gone[3, 4] = np.nan
    with pytest.raises(ProbeError, match="nan and not"):
        check(gone, 1e-3)


def test_other_batches_and_threads_pass(tmp_path: Path) -> None:
    store = extract(tmp_path)
    for batch in (1, 7, ROWS):
        assert np.array_equal(extract(tmp_path, source=loader(batch=batch))["output"], store["output"])
    half = extract(tmp_path / "half", net().bfloat16(), loader(tensors()[0].bfloat16()))
    again = extract(tmp_path / "half", net().bfloat16(), loader(tensors()[0].bfloat16(), batch=40))
    assert np.array_equal(half["output"], again["output"])
