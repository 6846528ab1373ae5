"""Feature stores: what is in them, what adds to them, what they refuse."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from probes import Estimate, FeatureStore, ProbeError, ProbeSet, Subset
from probes.features.random_features import random_subset
from probes.store.columns import Column
from probes.store.source import _slice
from probes.store.writer import Progress, Writer
from thermoscope.files import readable_errors

from .models import CLASSES, ConvNet, Mlp, Tagger, assert_identical, random_streams, seed_everything
from .test_detach import traces

ROWS = 50


def data(rows: int = ROWS, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 3, 8, 8, generator=g), torch.randint(CLASSES, (rows,), generator=g)
    return TensorDataset(x, y)


def loader(batch: int = 8, **options: Any) -> DataLoader[Any]:
    return DataLoader(data(), batch, **options)


def convnet(seed: int = 0) -> ConvNet:
    seed_everything(seed)
    return ConvNet()


def extract(path: Path, model: nn.Module | None = None, source: Any = None, **options: Any) -> FeatureStore:
    options = {"layers": ["input", "relu_1", "add", "fc"], "progress": False, **options}
    source = loader() if source is None else source
    return FeatureStore.extract(model or convnet(), source, path / "store", **options)


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def counting_calls(model: nn.Module) -> Counter[str]:
    """How often each module's forward has run, from now on."""
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


# -- what is in them ------------------------------------------------------------------------------------


def expected(model: ConvNet) -> dict[str, torch.Tensor]:
    """The features of `extract`'s layers, batch by batch, by hand."""
    parts: dict[str, list[torch.Tensor]] = {"input": [], "relu_1": [], "add": [], "fc": []}
    model.eval()
    with torch.no_grad():
        for x, _ in loader():
            a = model.relu(model.bn1(model.conv1(x)))
            b = model.relu(model.conv2(a))
            parts["input"].append(x)
            parts["relu_1"].append(b.clone())
            parts["add"].append(a + b)
            parts["fc"].append(model(x))
    return {name: torch.cat(part).flatten(1) for name, part in parts.items()}


def test_the_features_are_those_of_the_layers(tmp_path: Path) -> None:
    model = convnet()
    store = extract(tmp_path, model)
    assert store.layers == ("input", "relu_1", "add", "fc")
    assert (store.n, len(store)) == (ROWS, ROWS)
    assert_identical(torch.from_numpy(store.labels), data().tensors[1])
    for name, features in expected(model).items():
        assert isinstance(store[name], np.memmap)
        assert not store[name].flags.writeable
        assert_identical(torch.from_numpy(np.array(store[name])), features)
    store.verify(progress=False)


def test_reductions_and_random_subsets_are_the_online_ones(tmp_path: Path) -> None:
    model = convnet()
    reduce = {"relu_1": Subset(100), "add": "avg", "*": "auto:64"}
    layers = ["relu_1", "add", "conv2"]
    store = extract(tmp_path, model, layers=layers, reduce=reduce, seed=3)
    with ProbeSet(model, layers, CLASSES, reduce=reduce, seed=3) as probes:
        probes.evaluate(loader(), progress=False)
        texts = {name: text.partition(" of ")[0] for name, text in store.reductions.items()}
        assert texts == {name: text for name, (text, _) in probes.reductions.items()}
    whole = expected(model)["relu_1"]
    chosen = random_subset(whole.shape[1], 100, seed=3, name="relu_1")
    assert_identical(torch.from_numpy(np.array(store["relu_1"])), whole[:, chosen])


def test_half_precision(tmp_path: Path) -> None:
    store = extract(tmp_path, dtype="float16", autocast=torch.bfloat16)
    assert store["add"].dtype == np.float16
    exact = expected(convnet())["add"]
    assert torch.allclose(torch.from_numpy(np.array(store["add"])).float(), exact, atol=0.05)
    assert not np.array_equal(store["add"], exact.half().numpy()), "autocast was not used"


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        sets = [("class", batch[1]), ("many/floats", batch[0].double().mean((2, 3)))]
        return model(batch[0]), dict(sets if len(batch[1]) == 8 else reversed(sets))  # the order says nothing

    store = extract(tmp_path, forward=forward)
    x, y = data().tensors
    with pytest.raises(ProbeError, match="take one from label_sets"):
        print(store.labels)
    labels = store.label_sets
    assert labels["class"].dtype == np.int64
    assert np.array_equal(labels["class"], y)
    assert labels["many/floats"].dtype == np.float32
    assert np.allclose(labels["many/floats"], x.mean((2, 3)), atol=1e-6)
    # Another checkpoint's are compared with them, all numbers of a row.
    assert np.array_equal(extract(tmp_path, convnet(1), forward=forward).label_sets["class"], y)

    def changed(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        output, sets = forward(model, batch)
        sets["many/floats"][batch[0][:, 0, 0, 0] == x[20, 0, 0, 0], 2] += 1
        return output, sets

    with pytest.raises(ProbeError, match="the labels many/floats of row 20 differ"):
        extract(tmp_path, convnet(2), forward=changed)


@pytest.mark.parametrize("last", ["output", "fc"])
def test_the_models_own_error(tmp_path: Path, last: str) -> None:
    model = convnet()
    store = extract(tmp_path, model, layers=[last])
    wrong = (expected(model)["fc"].argmax(1) != data().tensors[1]).double()
    if last == "fc":
        assert store.model_error() is None
    else:
        error, se = store.model_error() or (0, 0)
        assert error == pytest.approx(float(wrong.mean()))
        assert se == pytest.approx(float(wrong.std()) / ROWS**0.5)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, -1, 3], (0.5, 0.5)),  # of two rows that count, one is wrong
        ([0, 1, 1, 0], (0.5, (0.25 / 3) ** 0.5)),
        ([-1, 3, 5, -100], None),
        ([[0], [1], [1], [0]], None),
        ([0.0, 1.0, 1.0, 0.0], None),
    ],
)
def test_the_error_of_rows_that_have_a_class(
    tmp_path: Path, labels: Any, expected: tuple[float, float] | None
) -> None:
    x = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])  # answers 0, 0, 1, 1
    store = extract(tmp_path, nn.Identity(), [(x, torch.tensor(labels))], layers=["output"])
    assert store.model_error() == (None if expected is None else pytest.approx(expected))


def test_the_error_of_very_many_rows(tmp_path: Path) -> None:
    x = torch.eye(2)[torch.zeros(9000, dtype=torch.int64)]
    y = (torch.arange(9000) == 4096).long()
    store = extract(tmp_path, nn.Identity(), [(x, y)], layers=["output"])
    assert (store.model_error() or (0, 0))[0] == pytest.approx(1 / 9000)


def test_automatic_layers_leave_out_what_has_no_row_per_example(tmp_path: Path) -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 6), nn.Linear(12, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(x.reshape(-1, 6)).reshape(len(x), -1))

    batches = [(torch.randn(4, 12), torch.zeros(4, dtype=torch.int64)) for _ in range(2)]
    model = Windows()
    store = extract(tmp_path, model, batches, layers="auto")
    assert store.layers == ("input", "head")
    assert "8 rows for a batch of 4" in store.skipped["inner"]
    assert extract(tmp_path, model, batches, layers="auto").skipped == store.skipped
    with pytest.raises(ProbeError, match="layer 'inner' gives 8 rows"):
        extract(tmp_path / "2", model, batches, layers=["inner"])


def test_automatic_layers_of_which_none_has_a_row_per_example(tmp_path: Path) -> None:
    batches = [(torch.randn(12, 4), torch.arange(4))]
    with pytest.raises(
        ProbeError, match=r"name some with layers=.* layer 'input' gives 12 rows .* 4 examples"
    ):
        extract(tmp_path, nn.Linear(4, 2), batches, layers="auto")


def test_batches_without_tensors(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        lengths = torch.tensor([[float(len(text))] for text in batch])
        return model(lengths), torch.zeros(len(batch))

    texts = ["a", "bird", "can", "carry", "half"]
    loader = DataLoader(texts, 2, collate_fn=list)  # type: ignore[arg-type]
    store = extract(tmp_path, nn.Identity(), loader, layers=["output"], forward=forward)
    assert store["output"][:, 0].tolist() == [1, 4, 3, 5, 4]
    with pytest.raises(ProbeError, match="how many examples it has; give a DataLoader"):
        extract(tmp_path, nn.Identity(), [texts, texts], layers=["output"], forward=forward)


def test_sequences_of_other_lengths(tmp_path: Path) -> None:
    batches = [(torch.randn(4, t, 4), torch.arange(4)) for t in (5, 7)]
    store = extract(tmp_path, Tagger(), batches, layers=["lstm", "head"])
    assert store.reductions["lstm"] == "mean of BTC 5x6, auto:4096"
    assert store["lstm"].shape == (8, 6)


# -- what adds to them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["auto", ["relu*", nn.Conv2d], [lambda point: point.type == "Conv2d"]])
def test_the_same_request_again_runs_three_batches(tmp_path: Path, layers: Any) -> None:
    model = convnet()
    first = extract(tmp_path, model, layers=layers)
    before, calls = contents(tmp_path), counting_calls(model)
    again = extract(tmp_path, model, layers=layers)
    assert (again.layers, again.reductions) == (first.layers, first.reductions)
    assert contents(tmp_path) == before
    assert calls[""] == 3, "the first batch to see what is meant, two more to see what has changed"


def test_more_layers_are_added(tmp_path: Path) -> None:
    model = convnet()
    extract(tmp_path, model, layers=["relu", "fc"])
    old, calls = contents(tmp_path), counting_calls(model)
    more = extract(tmp_path, model, layers=["add", "relu", "conv*"])
    assert more.layers == ("conv1", "relu", "conv2", "add")
    assert calls["fc"] == 1, "the forward did not stop: it runs whole once, to find layers and their order"
    opened = FeatureStore.open(tmp_path / "store")
    assert opened.layers == ("conv1", "relu", "conv2", "add", "fc")
    assert {name: contents(tmp_path)[name] for name in old if name.endswith(".npy")} == {
        name: content for name, content in old.items() if name.endswith(".npy")
    }
    fresh = extract(tmp_path / "2", model, layers=["conv*", "relu", "add", "fc"])
    for layer in fresh.layers:
        assert np.array_equal(opened[layer], fresh[layer])


def test_another_checkpoint_is_added(tmp_path: Path) -> None:
    first = extract(tmp_path, convnet(0))
    second = extract(tmp_path, convnet(1))
    assert first.model != second.model
    assert not np.array_equal(first["fc"], second["fc"])
    for store, seed in ((first, 0), (second, 1)):
        for which in (convnet(seed), store.model[:9]):
            assert np.array_equal(FeatureStore.open(store.path, which)["fc"], store["fc"])
    with pytest.raises(ProbeError, match="say which with model="):
        FeatureStore.open(first.path)
    with pytest.raises(ProbeError, match="its weights or structure differ"):
        FeatureStore.open(first.path, convnet(2))


def test_batches_of_another_size_are_the_same_data(tmp_path: Path) -> None:
    extract(tmp_path, layers=["fc"])
    assert extract(tmp_path, source=loader(5), layers=["add"])["add"].shape == (ROWS, 512)


# -- running the model ----------------------------------------------------------------------------------


def test_the_forward_stops_after_the_last_layer(tmp_path: Path) -> None:
    model = convnet().train()
    model.relu.register_forward_hook(lambda *_: None)  # the user's own stays
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda m, a, out: seen.append(out), always_call=True)
    calls = counting_calls(model)
    before, streams = traces(model), random_streams()
    store = extract(tmp_path, model, layers=["input", "relu_1"])
    batches = -(-ROWS // 8)
    assert (calls["conv1"], calls["conv2"], calls["fc"]) == (batches, batches, 1)
    assert len(seen) == batches, "always_call hooks are called"
    assert [out is None for out in seen] == [False] + [True] * (batches - 1)
    assert traces(model) == before
    assert_identical(random_streams(), streams)
    handle.remove()
    assert np.array_equal(store["relu_1"], expected(convnet())["relu_1"])


def test_the_loaders_own_generator_is_left_as_it_was(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    extract(tmp_path, source=loader(generator=generator))
    assert_identical(generator.get_state(), before)


def test_a_forward_function_that_uses_the_output_has_the_model_run_whole(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return None, model(batch[0]).argmax(1)

    model = convnet()
    store = extract(tmp_path, model, layers=["relu_1"], forward=forward)
    exact = expected(model)
    assert np.array_equal(store["relu_1"], exact["relu_1"])
    assert np.array_equal(store.labels, exact["fc"].argmax(1))


def test_a_forward_function_of_another_model_object_has_it_run_whole(tmp_path: Path) -> None:
    model = convnet()
    store = extract(tmp_path, model, layers=["relu_1"], forward=lambda _, batch: (model(batch[0]), batch[1]))
    assert np.array_equal(store["relu_1"], expected(model)["relu_1"])


def test_a_model_that_catches_everything(tmp_path: Path) -> None:
    class Careful(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x))
            try:
                x = self.relu(x)
            except Exception:
                x = F.relu(x)
            return self.fc(x.mean((2, 3)))

    seed_everything()
    model = Careful()
    stopped = extract(tmp_path, model, layers=["relu"])
    whole = extract(tmp_path / "2", model, layers=["relu", "fc"])
    assert np.array_equal(stopped["relu"], whole["relu"])


@pytest.mark.parametrize("layers", [["2"], ["2.add"]])
def test_a_compiled_model(tmp_path: Path, layers: list[str]) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.fc(x)

    seed_everything()
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Residual(), nn.Linear(6, CLASSES))
    batches = [(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)) for _ in range(3)]
    plain = extract(tmp_path, model, batches, layers=layers)
    torch.compiler.reset()
    model.compile(backend="eager")
    compiled = extract(tmp_path / "2", model, batches, layers=layers)
    torch.compiler.reset()
    assert np.array_equal(plain[layers[0]], compiled[layers[0]])


def test_a_model_that_draws_numbers_gives_the_same_again(tmp_path: Path) -> None:
    class Noisy(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn_like(x))

    seed_everything()
    model, source = Noisy(), DataLoader(TensorDataset(torch.randn(9, 6), torch.zeros(9)), 3)
    one, two = (extract(tmp_path / n, model, source, layers=["0"]) for n in "12")
    assert np.array_equal(one["0"], two["0"])


def test_loaders_with_workers_and_plain_lists(tmp_path: Path) -> None:
    reference = extract(tmp_path / "0")
    for name, source in {"workers": loader(num_workers=2), "list": list(loader())}.items():
        extract(tmp_path / name, source=source)
        found, expected = contents(tmp_path / name), contents(tmp_path / "0")
        assert found.keys() == expected.keys()
        # What a list of batches holds is not known, and stands in data.json.
        same = [file for file in found if name == "workers" or not file.endswith(".json")]
        assert [found[file] for file in same] == [expected[file] for file in same], name
    assert reference.n == ROWS


def test_what_it_will_do_is_reported_first(tmp_path: Path) -> None:
    said: list[Estimate] = []
    store = extract(tmp_path, report=said.append)
    (estimate,) = said
    written = sum(store[layer].nbytes for layer in store.layers) + 2 * 8 * ROWS
    assert (estimate.rows, estimate.bytes) == (ROWS, written)
    assert estimate.seconds > 0
    extract(tmp_path, report=said.append)
    assert len(said) == 1, "no work, no estimate"


def test_timing_the_estimate_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract(tmp_path / "1")
    monkeypatch.setattr("probes.store.extraction._MANY", 1)
    model = convnet()
    calls = counting_calls(model)
    extract(tmp_path / "2", model)
    assert calls[""] == 7 + 1
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize(("workers", "seconds"), [(0, 0.5 + 3), (4, 0.75), (12, 0.5)])
def test_the_estimate_is_of_what_is_left_and_of_all_processes(workers: int, seconds: float) -> None:
    """A batch takes half a second to compute and three to load, here or in other processes."""
    columns = [Column(Path("x.npy"), "float32", 26, (10,)), Column(Path("y.npy"), "int64", 26, ())]
    source: Any = SimpleNamespace(sizes=np.array([8, 8, 8, 2]), workers=workers, loading=3.0)
    estimate = Estimate.of(columns, source, np.array([0, 2, 3]), 0.5, 2, Path())
    assert (estimate.rows, estimate.bytes) == (18, 18 * 48)
    assert estimate.free == pytest.approx(shutil.disk_usage(".").free, rel=0.1)
    assert estimate.seconds == pytest.approx(3 * seconds / 2)


def test_some_batches_are_loaded_as_all_are() -> None:
    options: dict[str, Any] = {
        "collate_fn": list,
        "generator": torch.Generator(),
        "timeout": 7,
        "worker_init_fn": seed_everything,
        "multiprocessing_context": "spawn",
        "prefetch_factor": 3,
    }
    whole = DataLoader(range(10), 2, num_workers=2, **options)  # type: ignore[arg-type]
    for wanted, workers in ([3], 1), ([0, 1, 4], 2):
        some = _slice(whole, wanted)
        assert [list(indices) for indices in some.batch_sampler or ()] == [[2 * i, 2 * i + 1] for i in wanted]
        assert some.num_workers == workers
        for name in (*options, "dataset", "pin_memory"):
            assert getattr(some, name) == getattr(whole, name)
    assert list(_slice(DataLoader(range(10), 4), [0, 2]))[1].tolist() == [8, 9]  # type: ignore[arg-type]


def test_labels_in_a_buffer_that_is_used_again(tmp_path: Path) -> None:
    buffer = torch.zeros(10, dtype=torch.int64)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model(batch[0]), buffer.copy_(batch[1])

    source = loader(10)
    assert np.array_equal(extract(tmp_path, source=source, forward=forward).labels, data().tensors[1])


# -- what they refuse -----------------------------------------------------------------------------------


def alter(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (path,) = folder.rglob(name)
        path.write_bytes(change(path.read_bytes()))

    return apply


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (alter("add.npy", lambda c: c[:-4]), r"add\.npy has .* bytes instead of .*extract again"),
    "longer": (alter("add.npy", lambda c: c + b"0"), r"add\.npy has .* bytes instead of"),
    "edited": (alter("add.npy", flipped), r"add\.npy does not hold what was written there.*extract again"),
    "no header": (alter("fc.npy", lambda c: bytes(128) + c[128:]), r"fc\.npy cannot be read"),
    "a pickle": (alter("fc.npy", lambda c: c.replace(b"<f4", b"|O ", 1)), r"fc\.npy cannot be read"),
    "missing": (lambda f: next(f.rglob("fc.npy")).unlink(), r"fc\.npy is missing.*extract again"),
    "labels": (alter("labels.npy", flipped), r"labels\.npy does not hold"),
    "manifest": (alter("manifest.json", lambda c: c.replace(b'"size": 512', b'"size": 511')), "was edited"),
    "no JSON": (alter("manifest.json", lambda c: c[:40]), r"manifest\.json is damaged"),
    "data": (alter("data.json", lambda c: c.replace(b'"rows": 50', b'"rows": 49')), r"data\.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(tmp_path: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    extract(tmp_path)
    damage(tmp_path)
    with pytest.raises(ProbeError, match=message):
        FeatureStore.open(tmp_path / "store")
    with pytest.raises(ProbeError, match=message):
        extract(tmp_path)


def test_files_of_another_model_or_store_are_refused(tmp_path: Path) -> None:
    one, two = extract(tmp_path, convnet(0)), extract(tmp_path, convnet(1))
    folders = [one.path / store.model[:12] for store in (one, two)]
    shutil.copy(folders[1] / "fc.npy", folders[0] / "fc.npy")
    with pytest.raises(ProbeError, match=r"fc\.npy does not hold what was written there"):
        FeatureStore.open(one.path, one.model)
    shutil.rmtree(folders[0])
    folders[1].rename(folders[0])
    with pytest.raises(ProbeError, match="belongs to the model"):
        FeatureStore.open(one.path, one.model)
    other = extract(tmp_path / "other", source=DataLoader(data(seed=1), 8))
    shutil.copytree(other.path / other.model[:12], folders[0], dirs_exist_ok=True)
    with pytest.raises(ProbeError, match=r"data\.json is not that of the checkpoint"):
        FeatureStore.open(one.path, one.model)


def test_a_large_file_is_read_whole_by_verify_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.store.columns._WHOLE", 0)
    monkeypatch.setattr("probes.store.columns._ROWS", 2)
    store = extract(tmp_path)
    alter("add.npy", flipped)(tmp_path)
    reopened = FeatureStore.open(store.path)  # the middle is neither the first nor the last row
    with pytest.raises(ProbeError, match=r"add\.npy does not hold"):
        reopened.verify(progress=False)
    alter("add.npy", lambda c: c[:-2000] + bytes(2000))(tmp_path)
    with pytest.raises(ProbeError, match=r"add\.npy does not hold"):
        FeatureStore.open(store.path)


def other_later(rows: int = ROWS) -> DataLoader[Any]:
    x, y = (t.clone() for t in data().tensors)
    x[17] += 1
    return DataLoader(TensorDataset(x[:rows], y[:rows]), 8)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other data": (
        {"source": DataLoader(data(seed=1), 8)},
        "the inputs of row 0 differ from those in the store /",
    ),
    "one other row": (
        {"source": other_later(), "layers": ["conv1"]},
        "the inputs of row 17 differ from those in the store /",
    ),
    "fewer rows": ({"source": DataLoader(data(40), 8)}, "the loader has 40 rows, the store .* 50"),
    "other labels": (
        {"layers": ["conv1"], "forward": lambda m, b: (m(b[0]), b[1] * (b[0][:, 0, 0, 0] < 1))},
        "the labels of row .* differ",
    ),
    "other label sets": (
        {"layers": ["conv1"], "forward": lambda m, b: (m(b[0]), {"a": b[1], "b": b[1]})},
        "the labels are .* in the store",
    ),
    "a list of more rows": ({"source": list(loader()) * 2, "layers": ["conv1"]}, "the loader has 100 rows"),
    "other type": ({"dtype": "float16"}, "dtype='float32'.* asked for dtype='float16'"),
    "other precision": ({"autocast": torch.bfloat16}, "autocast=None.*autocast='bfloat16'"),
    "other seed": ({"seed": 1}, "seed=0.*seed=1"),
    "other reduction": ({"reduce": "avg", "layers": ["add"]}, "layer 'add' is in the store .* by 'flatten'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_does_not_belong_to_a_store_is_refused(tmp_path: Path, kind: str) -> None:
    options, message = OTHERS[kind]
    extract(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ProbeError, match=message):
        extract(tmp_path, **options)
    assert {n: c for n, c in contents(tmp_path).items() if n in before} == before
    assert FeatureStore.open(tmp_path / "store").layers == ("input", "relu_1", "add", "fc")


class Shuffled:
    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(DataLoader(data(seed=self.passes), 8))


class Shrinking:
    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(list(loader())[: None if self.passes < 4 else 5])


MISTAKES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "shuffled": (lambda: {"source": loader(shuffle=True)}, "shuffle=False"),
    "distributed": (
        lambda: {"source": loader(sampler=DistributedSampler(data(), num_replicas=2, rank=0))},
        "without a sampler",
    ),
    "other values": (lambda: {"source": Shuffled()}, "other values on a second pass"),
    "an iterator": (lambda: {"source": iter(list(loader()))}, "only once"),
    "empty": (lambda: {"source": []}, "no batch"),
    "shorter": (lambda: {"source": Shrinking()}, "ended before batch 5 of 7"),
    "positions": (lambda: {"reduce": "positions", "layers": ["add"]}, "one row per example"),
    "unknown layer": (lambda: {"layers": ["conv3"]}, "no layer matches 'conv3'"),
    "unknown type": (lambda: {"dtype": "float64"}, "'float32' or 'float16'"),
    "no labels": (lambda: {"source": [torch.randn(4, 3, 8, 8)] * 2}, "neither"),
    "input size": (
        lambda: {"source": [(torch.randn(4, 3, s, s), torch.arange(4)) for s in (8, 10)]},
        "for batch 1 instead of 4 x",
    ),
    "label kind": (
        lambda: {
            "source": [(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=t)) for t in (torch.int64, torch.float)]
        },
        "batch 1 has labels of .*float32",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_get_a_sentence(tmp_path: Path, kind: str) -> None:
    options, message = MISTAKES[kind]
    with pytest.raises(ProbeError, match=message):
        extract(tmp_path, **options())


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", "layer 'fc' gives NaN or infinite features for row 0"),
        (1e6, "float16", "beyond float16's 65504 in row 0; use dtype='float32'"),
    ],
)
def test_numbers_that_are_none(tmp_path: Path, value: float, dtype: str, message: str) -> None:
    model = convnet()
    nn.init.constant_(model.fc.bias, value)
    with pytest.raises(ProbeError, match=message):
        extract(tmp_path, model, dtype=dtype)
    with pytest.raises(ProbeError, match="unfinished"):
        FeatureStore.open(tmp_path / "store")


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ProbeError, match=r"need .* GB and the disk .* has 0.00 GB free; make room"):
        extract(tmp_path)
    assert contents(tmp_path) == {}


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Column.write

    def fail(self: Column, file: int, first: int, block: Any) -> None:
        if first >= 24:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, file, first, block)

    monkeypatch.setattr(Column, "write", fail)
    with pytest.raises(ProbeError, match=r"the disk is full; make room and make the same call again"):
        extract(tmp_path)
    monkeypatch.undo()
    model = convnet()
    calls = counting_calls(model)
    extract(tmp_path, model)
    assert calls[""] == 1 + (7 - 3), "three batches were kept"
    extract(tmp_path / "2")
    assert contents(tmp_path / "store") == contents(tmp_path / "2" / "store")


def test_progress_is_noted_after_an_interval_or_ten_times_what_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("probes.store.writer.time", SimpleNamespace(monotonic=lambda: now))
    column, progress = Column(tmp_path / "x.npy", "float32", 9, (1,)), Progress(tmp_path / "progress", 9, 1)
    column.create()
    progress.create()
    noted: list[int] = []

    def note(done: dict[int, Any]) -> None:
        nonlocal now
        noted.append(len(done))
        now += 0.5

    monkeypatch.setattr(progress, "note", note)
    writer = Writer([column], ["x"], [], progress)
    writer._files = [os.open(column.path, os.O_RDWR)]
    for number, (seconds, expected) in enumerate(
        [(101.9, []), (102.0, [2]), (107.4, [2]), (107.5, [2, 2]), (112.9, [2, 2])]
    ):
        now = seconds
        writer._write(number, number, [np.ones((1, 1), np.float32)], None)
        assert noted == expected, seconds
    writer._note()
    assert noted == [2, 2, 1], "at the end, what is left"
    writer._note()
    assert noted == [2, 2, 1], "and no more"
    os.close(writer._files[0])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "'here': the disk is full; make room"),
        (PermissionError(errno.EACCES, "Permission denied"), "'here': you have no permission"),
        (OSError(errno.EROFS, "Read-only file system"), "'here': you have no permission"),
        (OSError(errno.EIO, "Input/output error"), "'here': Input/output error; choose another"),
        (OSError("odd"), "'here': odd; choose another"),
    ],
)
def test_refusals_of_the_operating_system(error: OSError, message: str) -> None:
    with pytest.raises(ProbeError, match=message), readable_errors(Path("here"), ProbeError):
        raise error


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("")
    with pytest.raises(ProbeError, match="not empty and no feature store"):
        extract(tmp_path)
    with pytest.raises(ProbeError, match="does not exist"):
        FeatureStore.open(tmp_path / "store")


def test_an_unknown_layer(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no layer 'ad'; the nearest names are add"):
        extract(tmp_path)["ad"]


def test_nothing_in_a_store_tells_of_this_machine(tmp_path: Path) -> None:
    extract(tmp_path)
    for path in tmp_path.rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert json.loads(path.read_text())
