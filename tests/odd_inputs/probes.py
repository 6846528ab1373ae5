"""Probes on models, batches and arguments that nobody had in mind."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader, TensorDataset

from probes import Classification, MultiLabel, ProbeResult, ProbeSet, Regression, hook_points

from ..probes.models import CLASSES, Mlp, vectors
from . import Case

BATCH = X, Y = vectors(1)[0]


class Through(nn.Module):
    """Turns its input into something, lets `point` pass it on, and answers from numbers again."""

    def __init__(
        self, there: Callable[[torch.Tensor], Any], back: Callable[[Any], torch.Tensor] = lambda h: h
    ) -> None:
        super().__init__()
        self.there, self.back = there, back
        self.point, self.head = nn.Identity(), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.back(self.point(self.there(x))))


def one_step(model: nn.Module, layers: Any, x: Any = X, y: Any = Y, **options: Any) -> ProbeResult:
    """A training step of the probes and an evaluation on the same batch; the model answers as ever."""
    model.eval()
    with torch.no_grad():
        plain = model(x)
    model.train()
    with ProbeSet(model, layers, **{"num_classes": CLASSES, **options}) as probes:
        model(x)
        probes.step(y)
        model.eval()
        with torch.no_grad():
            probed = model(x)
        model.train()
        result = probes.evaluate([(x, y)], progress=False)
    if isinstance(plain, torch.Tensor) and not plain.is_nested:
        assert torch.equal(plain, probed)
    return result


def same_readings(odd: ProbeResult, layer: str, features: torch.Tensor, tolerance: float = 1e-6) -> None:
    """A layer's reading is that of a probe on these plain features (B, size)."""
    with ProbeSet(nn.Identity(), "input", CLASSES, reduce="flatten") as probes:
        probes.model(features.float().requires_grad_())
        probes.step(Y[: len(features)])
        plain = probes.evaluate([(features.float(), Y[: len(features)])], progress=False)["input"]
    assert odd[layer].features == plain.features
    assert abs(odd[layer].loss - plain.loss) <= tolerance, (odd[layer].loss, plain.loss)
    assert odd[layer].error == plain.error


# -- transformations and traces ---------------------------------------------------------------------


def beside(run: Callable[[nn.Module], Any], layers: Any = ("0", "1")) -> Callable[[], None]:
    """Something done to a model with probes gives what it gives without; the probes step on afterwards."""

    def use() -> None:
        torch.manual_seed(0)
        model = Mlp()
        expected = run(model)
        with ProbeSet(model, list(layers) if isinstance(layers, tuple) else layers, CLASSES) as probes:
            found = run(model)
            assert _equal(found, expected)
            model(X)
            run(model)
            probes.step(Y)  # on the plain forward
            steps = {r.steps for r in probes.evaluate([BATCH], progress=False).readings}
            assert steps == {1}

    return use


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_equal(a[k], b[k]) for k in b)
    if isinstance(a, (tuple, list)):
        return all(_equal(p, q) for p, q in zip(a, b, strict=True))
    return a == b


def loss_at(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    return lambda p: F.cross_entropy(torch.func.functional_call(model, p, (X,)), Y)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def per_example_gradients(model: nn.Module) -> Any:
    def loss(p: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, p, (x[None],)), y[None])

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters(model), X, Y)


def dual(model: nn.Module) -> torch.Tensor:
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        out = model(torch.autograd.forward_ad.make_dual(X, X))
        return torch.autograd.forward_ad.unpack_dual(out).tangent.clone()


def faked(model: nn.Module) -> tuple[int, ...]:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return tuple(model(mode.from_tensor(X)).shape)


def jit_traced(model: nn.Module) -> tuple[Any, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, X)
    return traced(X), str(sorted({node.kind() for node in traced.inlined_graph.nodes()}))


def fx_nodes(model: nn.Module) -> list[str]:
    return [node.name for node in make_fx(model)(X).graph.nodes if not node.name.startswith("alias")]


def own_forward_inside(model: nn.Module) -> Any:
    return torch.func.vmap(lambda x: model(x[None])[0])(X)


TRANSFORMED: dict[str, Callable[[nn.Module], Any]] = {
    "torch.func.grad": lambda m: torch.func.grad(loss_at(m))(parameters(m)),
    "torch.func.vjp": lambda m: torch.func.vjp(m, X)[0],
    "torch.func.jvp": lambda m: torch.func.jvp(m, (X,), (X,)),
    "torch.func.jacrev": lambda m: torch.func.jacrev(m)(X[:2]),
    "torch.func.jacfwd": lambda m: torch.func.jacfwd(m)(X[:2]),
    "torch.func.hessian": lambda m: torch.func.hessian(lambda x: m(x).sum())(X[:1]),
    "torch.func.vmap": lambda m: torch.func.vmap(m)(X[None].expand(3, -1, -1)),
    "torch.func.linearize": lambda m: torch.func.linearize(m, X)[1](X),
    "gradients per example": per_example_gradients,
    "a vmap over examples": own_forward_inside,
    "forward-mode gradients": dual,
    "fake tensors": faked,
    "torch.jit.trace": jit_traced,
    "make_fx": fx_nodes,
    "torch.fx.symbolic_trace": lambda m: torch.fx.symbolic_trace(m)(X),
    "torch.export": lambda m: torch.export.export(m, (X,)).module()(X),
}
CASES = [Case(f"{name} over a probed model", beside(run)) for name, run in TRANSFORMED.items()]
CASES += [
    Case(f"{name} with probes on operations", beside(TRANSFORMED[name], layers=lambda point: True))
    for name in ("torch.func.grad", "torch.func.vmap", "torch.func.jvp", "fake tensors")
]


def only_transformed() -> None:
    with ProbeSet(Mlp(), "0", CLASSES) as probes:
        torch.func.vmap(probes.model)(X[None])
        probes.step(Y)


def vmap_inside() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.func.vmap(self.part)(x))

    assert one_step(Ensemble(), "head")["head"].steps == 1
    one_step(Ensemble(), "part")


CASES += [
    Case("only a transformed forward", only_transformed, "needs a training forward"),
    Case("a layer inside a vmap", vmap_inside, "layer 'part' runs inside a transformation of torch.func"),
]

# -- tensors of other kinds -------------------------------------------------------------------------


def encoder(layers: Any) -> None:
    """As PyTorch makes it: in eval mode with padding, it hands nested tensors from layer to layer."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor, src_key_padding_mask: torch.Tensor) -> torch.Tensor:
            h = self.encoder(x, src_key_padding_mask=src_key_padding_mask)
            return self.head(h[:, 0])

    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(4, 7, 8)
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2])[:, None]
    batch = {"x": x, "src_key_padding_mask": padding, "y": Y[:4]}
    model.eval()
    with torch.no_grad():
        plain = model(x, padding)
    with ProbeSet(model, layers, CLASSES) as probes:
        with torch.no_grad():
            torch.testing.assert_close(model(x, padding), plain)
        model.train()(x, padding)
        probes.step(Y[:4])
        (training,) = probes._bank.groups[:1]
        loss = probes.evaluate([batch], progress=False)["encoder.layers.1"].loss
        assert training.steps == 1
        model.train()
        h = x
        for layer in model.encoder.layers:
            h = layer(h, src_key_padding_mask=padding)
        mean = h.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)
        group, i = probes._bank._find("encoder.layers.1")
        weight, bias = group.folded()
        expected = F.cross_entropy(mean @ weight[i].T + bias[i], Y[:4])
        assert abs(float(expected) - loss) < 1e-5


def nested(layout: torch.layout) -> None:
    parts = [torch.randn(3, 6), torch.randn(5, 6), torch.randn(1, 6)]
    model = nn.Sequential(nn.Linear(6, 6))
    x = torch.nested.nested_tensor(parts, layout=layout)
    found = one_step(model, "input", x, Y[:3])
    same_readings(found, "input", torch.stack([part.mean(0) for part in parts]), 1e-4)


def ragged_images() -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 5, 6)])
    with ProbeSet(nn.Identity(), "input", CLASSES) as probes:
        probes.model(x)
        probes.step(Y[:2])


def stored_as(
    there: Callable[[torch.Tensor], Any], back: Callable[[Any], torch.Tensor]
) -> Callable[[], None]:
    def use() -> None:
        model = Through(there, back)
        rounded = back(there(X))
        same_readings(one_step(model, "point"), "point", rounded)

    return use


STORED: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]] = {
    "sparse COO": (lambda x: x.relu().to_sparse(), lambda h: h.to_dense()),
    "sparse CSR": (lambda x: x.relu().to_sparse_csr(), lambda h: h.to_dense()),
    "sparse CSC": (lambda x: x.relu().to_sparse_csc(), lambda h: h.to_dense()),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), lambda h: h.dequantize()),
    "quantised per channel": (
        lambda x: torch.quantize_per_channel(x, torch.full((6,), 0.1), torch.zeros(6), 1, torch.qint8),
        lambda h: h.dequantize(),
    ),
    "double": (lambda x: x.double(), lambda h: h.float()),
    "bfloat16": (lambda x: x.bfloat16(), lambda h: h.float()),
    "half": (lambda x: x.half(), lambda h: h.float()),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), lambda h: h.float()),
    "expanded": (lambda x: x[:, :1].expand(-1, 6), lambda h: h),
    "transposed in memory": (lambda x: x.T.contiguous().T, lambda h: h),
    "strided": (lambda x: x.repeat_interleave(2, 1)[:, ::2], lambda h: h),
    "flipped in sign by a flag": (lambda x: torch.complex(x, x).conj().imag, lambda h: h + 0),
    "a tuple": (lambda x: (x, 3), lambda h: h[0]),
    "a named tuple": (lambda x: _Pair(None, x), lambda h: h.second),
    "a dict": (lambda x: {"note": "text", "h": x}, lambda h: h["h"]),
    "an ordered dict of lists": (lambda x: collections.OrderedDict(a=[None, x]), lambda h: h["a"][1]),
    "a dataclass": (lambda x: _Record(x), lambda h: h.h),
    "a dataclass that is not filled in": (lambda x: _unfilled(x), lambda h: h.h),
    "a nest that holds itself": (lambda x: _cyclic(x), lambda h: h["h"]),
    "a parameter": (lambda x: nn.Parameter(x), lambda h: h),
    "a subclass": (lambda x: x.as_subclass(_Subclass), lambda h: h.as_subclass(torch.Tensor)),
}
_Pair = collections.namedtuple("_Pair", "first second")


@dataclasses.dataclass
class _Record:
    h: torch.Tensor
    late: Any = dataclasses.field(init=False)


def _unfilled(x: torch.Tensor) -> _Record:
    record = _Record(x)
    assert not hasattr(record, "late")
    return record


def _cyclic(x: torch.Tensor) -> dict[str, Any]:
    nest: dict[str, Any] = {"self": None, "h": x}
    nest["self"] = nest
    return nest


class _Subclass(torch.Tensor):
    """Notes that somebody computed with it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("clone", "copy_", "mean", "flatten", "detach"):
            raise AssertionError(f"a probe called {func.__name__} on the user's subclass")
        return super().__torch_function__(func, types, args, kwargs or {})


def nothing_real(there: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    return lambda: one_step(Through(there, lambda h: X), "point")


CASES += [Case(f"features that are {name}", stored_as(*ways)) for name, ways in STORED.items()]
CASES += [
    Case("nn.TransformerEncoder, nested between its layers", lambda: encoder("auto")),
    Case("nn.TransformerEncoder, layers by name", lambda: encoder(["encoder.layers.*", "encoder"])),
    Case("nested sequences", lambda: nested(torch.strided)),
    Case("jagged sequences", lambda: nested(torch.jagged)),
    Case("nested images", ragged_images, "no sequences of vectors of one length"),
    Case("complex features", nothing_real(lambda x: torch.complex(x, x)), "but complex64 numbers"),
    Case("integer features", nothing_real(lambda x: x.long()), "but int64 numbers"),
    Case("boolean features", nothing_real(lambda x: x > 0), "but bool numbers"),
    Case("a layer that gives nothing", nothing_real(lambda x: None), "but nothing"),
    Case("a layer that gives an object", nothing_real(lambda x: threading.Event()), "but a Event"),
    Case("a layer that gives a number", nothing_real(lambda x: x.sum()), "but one number (float32)"),
    Case("a layer that gives a text", nothing_real(lambda x: "text"), "but a str"),
    Case(
        "a layer without features", nothing_real(lambda x: x[:, :0]), "has no features: its shape is (8, 0)"
    ),
    Case("one number per example", nothing_real(lambda x: x[:, 0]), "gives one number per example"),
]


# -- forwards ---------------------------------------------------------------------------------------


def on_meta() -> None:
    with ProbeSet(Mlp().to("meta"), "0", CLASSES) as probes:
        probes.model(X.to("meta"))
        probes.step(Y)


def other_size_first() -> None:
    """What was seen of inputs of another size before any step does not bind."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES))
    for reduce, size in (("flatten", 32), ("subset:40", 32), ("avg", 2)):
        with ProbeSet(model, "0", CLASSES, reduce=reduce) as probes:
            model(torch.randn(2, 1, 9, 9))
            probes.evaluate([(torch.randn(2, 1, 8, 8), Y[:2])], progress=False)
            probes.evaluate([(torch.randn(2, 1, 7, 7), Y[:2])], progress=False)
            model(torch.randn(8, 1, 6, 6))
            probes.step(Y)
            result = probes.evaluate([(torch.randn(8, 1, 6, 6), Y)], progress=False)
            assert result["0"].features == size
            fitted = probes.fit(
                [(torch.randn(8, 1, 5, 5), Y)], [(torch.randn(8, 1, 5, 5), Y)], progress=False
            )
            assert fitted["0"].features == {"avg": 2}.get(reduce, 18)


def failed_fit_keeps_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES))
    with ProbeSet(model, "0", CLASSES, reduce="flatten") as probes:
        model(torch.randn(8, 1, 6, 6))
        probes.step(Y)
        other = (torch.randn(8, 1, 9, 9), Y)
        try:
            probes.fit([other], [], progress=False)
        except ValueError:
            model(torch.randn(8, 1, 6, 6))
            probes.step(Y)
        assert probes.evaluate([(torch.randn(8, 1, 6, 6), Y)], progress=False)["0"].steps == 2
        probes.evaluate([other], progress=False)


def in_inference_mode(*where: str) -> Callable[[], None]:
    def use() -> None:
        def inside(name: str) -> Any:
            return torch.inference_mode(name in where)

        model = Mlp()
        with ProbeSet(model, "0", CLASSES) as probes:
            with inside("fit"):
                probes.fit([BATCH], [BATCH], max_epochs=2, progress=False)
            model(X)
            with inside("step"):
                probes.step(Y)
            with inside("evaluate"):
                probes.evaluate([BATCH], progress=False)
            with inside("state"):
                probes.load_state_dict(probes.state_dict())
            model(X)
            probes.step(Y)
            same = probes.evaluate([BATCH], progress=False)["0"]
        with ProbeSet(model, "0", CLASSES) as probes:
            probes.fit([BATCH], [BATCH], max_epochs=2, progress=False)
            for _ in range(2):
                model(X)
                probes.step(Y)
            assert probes.evaluate([BATCH], progress=False)["0"] == same

    return use


def lazy(layers: Any) -> Callable[[], None]:
    def use() -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES))
        with ProbeSet(model, layers, CLASSES) as probes:
            model(torch.randn(8, 3, 6, 6))
            probes.step(Y)
            result = probes.evaluate([(torch.randn(8, 3, 6, 6), Y)], progress=False)
            assert {"0", "3"} <= {r.layer for r in result.readings}

    return use


def scripted(layers: Any, *, traced: bool = False) -> Callable[[], ProbeResult]:
    def use() -> ProbeResult:
        part: Any = nn.Sequential(nn.Linear(6, 12), nn.Tanh())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            part = torch.jit.trace(part, X) if traced else torch.jit.script(part)
        model = nn.Sequential(part, nn.Linear(12, CLASSES))
        found = one_step(model, layers)
        assert found["1"].steps == 1
        return found

    return use


def script_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ProbeSet(torch.jit.script(Mlp()), "0", CLASSES)


def empty(step: bool) -> Callable[[], None]:
    def use() -> None:
        with ProbeSet(Mlp(), ["input", "0", "3"], CLASSES) as probes:
            if step:
                probes.model(X[:0])
                probes.step(Y[:0])
            whole = probes.fit([(X[:0], Y[:0]), BATCH, (X[:0], Y[:0])], [BATCH], max_epochs=3, progress=False)
            other = probes.evaluate([(X[:0], Y[:0]), BATCH, (X[:0], Y[:0])], progress=False)
            assert whole == other
            assert whole["0"].steps == 3

    return use


def empty_maps() -> None:
    """Empty batches of features with a label per position."""
    x, y = torch.randn(2, 3, 4, 4), torch.randint(CLASSES, (2, 4, 4))
    with ProbeSet(nn.Conv2d(3, 3, 1), "input", CLASSES, reduce="positions") as probes:
        result = probes.evaluate([(x[:0], y[:0]), (x, y)], progress=False)
        assert result["input"].n == 32


def one_at_a_time() -> None:
    """Batches of one example: the statistics are those of all of them together."""
    with ProbeSet(Mlp(), "input", CLASSES) as probes:
        for i in range(8):
            probes.model(X[i : i + 1])
            probes.step(Y[i : i + 1])
        (group,) = probes._bank.groups
        torch.testing.assert_close(group.mean[0], X.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(group.var[0], X.var(0, unbiased=False), rtol=1e-4, atol=1e-5)


def gives(output: Any, layer: str = "l") -> Callable[[], None]:
    def use() -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.l = nn.Linear(6, 6)

            def forward(self, x: torch.Tensor) -> Any:
                return output(self.l(x))

        found = one_step(Odd(), layer)
        assert found["l"].steps == 1
        assert found.references[0].model_error is None

    return use


def generating() -> None:
    class Generating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
            yield self.l(x)

    with ProbeSet(Generating(), "l", CLASSES) as probes:
        assert len(list(probes.model(X))) == 1
        probes.step(Y)


def calls_itself() -> None:
    """A call of the model inside its own forward belongs to that forward: its calls are numbered on."""

    class Recursive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
            return self(self.l(x), depth - 1) if depth else x

    model = Recursive()
    found = one_step(model, ["input", "l", "l_1", "output"])
    assert [r.layer for r in found.readings] == ["input", "l", "l_1", "output"]
    same_readings(found, "input", X)
    same_readings(found, "l_1", model(X).detach(), 1e-5)
    same_readings(found, "output", model(X).detach(), 1e-5)


def in_a_hook_of_the_user() -> None:
    """A hook that runs the whole model again, on other data."""
    model = Mlp()
    busy = []

    def again(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        if not busy:
            busy.append(1)
            with torch.no_grad():
                model(X[:2] * 5)
            busy.clear()

    model[1].register_forward_hook(again)
    same_readings(one_step(model, ["0"]), "0", model[0](X).detach(), 1e-5)


def interrupted() -> None:
    """After an interrupt in the middle of a forward the next forward is one of its own."""
    model = Mlp()
    with ProbeSet(model, ["0", "3"], CLASSES) as probes:
        handle = model[1].register_forward_pre_hook(lambda *_: _interrupt())
        try:
            model(X)
        except KeyboardInterrupt:
            handle.remove()
        model(X)
        probes.step(Y)
        assert probes.layers == ("0", "3")


def _interrupt() -> None:
    raise KeyboardInterrupt


def failed_forward() -> None:
    with ProbeSet(Mlp(), "0", CLASSES) as probes:
        with contextlib.suppress(RuntimeError):
            probes.model(X[:, :3])
        probes.step(Y)


def watched_by_a_thread() -> None:
    """Another thread looks at the model all the while, without gradients."""
    model = Mlp()
    stop = threading.Event()

    def watch() -> None:
        with torch.no_grad():
            while not stop.is_set():
                model(X[:3])

    with ProbeSet(model, ["0", "1"], CLASSES) as probes:
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for _ in range(30):
                model(X)
                probes.step(Y)
        finally:
            stop.set()
            thread.join()
        found = probes.evaluate([BATCH], progress=False)
    with ProbeSet(model, ["0", "1"], CLASSES) as probes:
        for _ in range(30):
            model(X)
            probes.step(Y)
        assert probes.evaluate([BATCH], progress=False) == found


def step_of_another_thread() -> None:
    with ProbeSet(Mlp(), "0", CLASSES) as probes:
        thread = threading.Thread(target=probes.model, args=(X,))
        thread.start()
        thread.join()
        probes.step(Y)


def training_in_threads_in_turn() -> None:
    """Each epoch in another thread, as worker pools do."""
    with ProbeSet(Mlp(), "0", CLASSES) as probes:
        for _ in range(3):
            thread = threading.Thread(target=lambda: (probes.model(X), probes.step(Y)))
            thread.start()
            thread.join()
        assert probes.evaluate([BATCH], progress=False)["0"].steps == 3


def odd_predicate() -> None:
    with ProbeSet(Mlp(), lambda point: point.size > 3, CLASSES) as probes:  # type: ignore[attr-defined]
        assert probes.model(X).shape == (8, CLASSES)
        probes.step(Y)


def by_instance() -> None:
    model = Mlp()
    assert one_step(model, [model[0]])["0"].steps == 1
    assert one_step(model, model[3])["3"].steps == 1
    assert [r.layer for r in one_step(model, "*", exclude=model[1]).readings] == ["0", "2", "3"]


def default_dtype(dtype: torch.dtype) -> None:
    x, y = torch.randn(1001, 6), torch.randint(CLASSES, (1001,))
    torch.set_default_dtype(dtype)
    try:
        with ProbeSet(Mlp().float(), "input", CLASSES) as probes:
            probes.model(x)
            probes.step(y)
            (group,) = probes._bank.groups
            torch.testing.assert_close(group.mean[0], x.mean(0), rtol=1e-4, atol=1e-5)
            assert probes.evaluate([(x, y)], progress=False)["input"].n == 1001
    finally:
        torch.set_default_dtype(torch.float32)


def default_device() -> None:
    model = Mlp()
    with torch.device("meta"), ProbeSet(model, "0", CLASSES) as probes:
        model(X)
        probes.step(Y)
        assert probes.evaluate([BATCH], progress=False)["0"].steps == 1


CASES += [
    Case("a model on the meta device", on_meta, "layer '0' is on the meta device"),
    Case("inputs of another size before the first step", other_size_first),
    Case(
        "a fit of another size that fails",
        failed_fit_keeps_sizes,
        "layer '0' gave 32 features and now gives 98",
    ),
    *(
        Case(f"inference mode around {way}", in_inference_mode(way))
        for way in ("fit", "step", "evaluate", "state")
    ),
    Case("inference mode around everything", in_inference_mode("fit", "step", "evaluate", "state")),
    Case("lazy modules", lazy(["0", "3"])),
    Case("lazy modules, layers chosen by themselves", lazy("auto")),
    Case("a TorchScript part that is not asked for", scripted("1")),
    Case("a TorchScript part", scripted(["0", "1"]), "layer '0' is TorchScript"),
    Case("a part inside TorchScript", scripted(["0.1", "1"]), "layer '0.1' is TorchScript"),
    Case("a traced part", scripted(["0", "1"], traced=True)),
    Case("a TorchScript model", script_whole, "the model is TorchScript, which takes no hooks"),
    Case("empty batches among others", empty(step=False)),
    Case("a step on an empty batch", empty(step=True), "this batch has no examples"),
    Case("empty batches with labels per position", empty_maps),
    Case("batches of one example", one_at_a_time),
    Case("a model that gives nothing", gives(lambda h: None)),
    Case("a model that gives an object", gives(lambda h: threading.Event())),
    Case("a model that gives texts", gives(lambda h: {"logits": "none"})),
    Case("a model that gives scores of other classes", gives(lambda h: h)),
    Case(
        "the output of a model that gives nothing", gives(lambda h: None, "output"), "layer 'output' holds no"
    ),
    Case("a model that is a generator", generating, "layer 'l' exists but the model's forward never runs it"),
    Case("a model that calls itself", calls_itself),
    Case("a hook that runs the model again", in_a_hook_of_the_user),
    Case("an interrupted forward", interrupted),
    Case("a step after a forward that failed", failed_forward, "needs a training forward"),
    Case("a thread that watches the model", watched_by_a_thread),
    Case("a step in another thread than the forward", step_of_another_thread, "ran in another thread"),
    Case("epochs in one thread after another", training_in_threads_in_turn),
    Case("a predicate that fails", odd_predicate, "'HookPoint' object has no attribute 'size'"),
    Case("modules themselves as layers", by_instance),
    Case("a module of another model", lambda: ProbeSet(Mlp(), Mlp()[0], CLASSES), "is no part of the model"),
    *(
        Case(f"default type {d}", lambda d=d: default_dtype(d))
        for d in (torch.float64, torch.bfloat16, torch.half)
    ),
    Case("default device meta", default_device),
]

# -- labels and batches -----------------------------------------------------------------------------


def labelled(y: Any, target: Any = None) -> Callable[[], None]:
    def use() -> None:
        with ProbeSet(Mlp(), "0", targets=target or Classification(CLASSES)) as probes:
            probes.model(X)
            probes.step(y)
            (one,) = probes._bank.groups
            probes.load_state_dict(
                ProbeSet(Mlp(), "0", targets=target or Classification(CLASSES)).state_dict()
            )
            probes.model(X)
            probes.step(Y)
            assert torch.equal(one.weights[0], probes._bank.groups[0].weights[0])

    return use


def refused_labels(y: Any, target: Any = None) -> Callable[[], None]:
    def use() -> None:
        with ProbeSet(Mlp(), "0", targets=target or Classification(CLASSES)) as probes:
            probes.model(X)
            probes.step(y)

    return use


def nothing_counts() -> None:
    """A batch without a label that counts changes neither weights from zero nor the running loss."""
    with ProbeSet(Mlp(), "0", CLASSES) as probes:
        probes.model(X)
        probes.step(torch.full((8,), -100))
        (group,) = probes._bank.groups
        assert not group.weights[0].any()
        assert group.score.isinf().all()
        probes.model(X)
        probes.step(Y)
        score = group.score.clone()
        probes.model(X)
        probes.step(torch.full((8,), -100))
        assert torch.equal(group.score, score)


def dates() -> None:
    """Targets that vary little beside their size: seconds since 1970, within a minute."""
    y = 1.7e9 + 10 * X[:, :1].double()
    with ProbeSet(Mlp(), "input", targets=Regression(), lr=0.1) as probes:
        for _ in range(300):
            probes.model(X)
            probes.step(y)
        reading = probes.evaluate([(X, y)], progress=False)["input"]
    assert reading.error < 0.02, reading
    assert reading.loss < 0.02 * 100 * float(X[:, 0].var()), reading


def batches(loader: Any, **options: Any) -> Callable[[], None]:
    def use() -> None:
        with ProbeSet(Mlp(), "0", CLASSES, **options) as probes:
            expected = probes.evaluate([BATCH], progress=False) if not options else None
            found = probes.evaluate(loader, progress=False)
            assert expected is None or found == expected
            assert found["0"].n == 8

    return use


_Batch = collections.namedtuple("_Batch", "x y")
LABELS: dict[str, Any] = {
    "a list": Y.tolist(),
    "a tuple": tuple(Y.tolist()),
    "an array": Y.numpy(),
    "uint8": Y.to(torch.uint8),
    "uint16 in an array": Y.numpy().astype("uint16"),
    "int32": Y.int(),
    "sparse": Y.to_sparse(),
    "in a dict": {"y": Y},
    "strided": Y.repeat_interleave(2)[::2],
}
BAD_LABELS: dict[str, tuple[Any, str]] = {
    "None": (None, "labels 'y' are a NoneType that holds no numbers"),
    "a text": ("abc", "labels 'y' are a str that holds no numbers"),
    "a list of texts": (["a"] * 8, "that holds no numbers"),
    "a ragged list": ([[1], [1, 2]], "that holds no numbers"),
    "an array of objects": (np.array([None] * 8), "that holds no numbers"),
    "a column": (Y[:, None], "pass y.squeeze(1)"),
    "one-hot": (F.one_hot(Y, CLASSES), "give class numbers: y.argmax(1)"),
    "complex": (Y.to(torch.complex64), "labels are complex64"),
    "float": (Y.float(), "labels are float32"),
    "NaN": (torch.full((8,), float("nan")), "labels are float32"),
    "on the meta device": (Y.to("meta"), "are on the meta device"),
    "an empty dict": ({}, "labels were given for []"),
    "of 2**40": (Y + 2**40, "is out of range"),
}


def taken_from_a_dict(model: nn.Module, batch: Any) -> Any:
    return model(batch["data"]["x"]), batch["data"]["label"]


CASES += [Case(f"labels as {name}", labelled(y)) for name, y in LABELS.items()]
CASES += [Case(f"labels: {name}", refused_labels(y), s) for name, (y, s) in BAD_LABELS.items()]
CASES += [
    Case(
        "complex numbers to regress",
        refused_labels(X.to(torch.complex64), Regression(6)),
        "are complex numbers",
    ),
    Case("complex tags", refused_labels(X.to(torch.complex64), MultiLabel(6)), "labels are complex numbers"),
    Case("one number to regress", refused_labels(3.0, Regression()), "are one number"),
    Case("a batch without a label that counts", nothing_counts),
    Case(
        "a split without a label that counts",
        batches([(X, torch.full((8,), -100))]),
        "has a label that counts",
    ),
    Case("dates to regress", dates),
    Case("batches as lists", batches([list(BATCH)])),
    Case("batches as named tuples", batches([_Batch(X, Y)])),
    Case("batches with more behind the labels", batches([(X, Y, "path", None)])),
    Case("batches as arrays", batches([(X.numpy(), Y.numpy())])),
    Case("batches as dicts", batches([{"input": X, "labels": Y}])),
    Case("a DataLoader with a ragged end", batches(DataLoader(TensorDataset(X, Y), 3), lr=0.1)),
    Case("nested dicts and a function", batches([{"data": {"x": X, "label": Y}}], forward=taken_from_a_dict)),
    Case("named tuples stay what they are", batches([_Batch(X, Y)], forward=lambda m, b: (m(b.x), b.y))),
    Case(
        "dicts under another name",
        batches([{"pixels": X, "y": Y}]),
        "cannot be called with a batch's entries",
    ),
    Case("dicts with more in them", batches([{"input": X, "y": Y, "path": "p"}]), "argument 'path'"),
    Case("no loader", batches(None), "None is no loader"),
    Case("a number for a loader", batches(5), "5 is no loader"),
    Case("a model for a loader", batches(Mlp()), "batches are neither"),
    Case("a data set without batches", batches(TensorDataset(X, Y)), "gives one number per example"),
    Case("a tensor for a loader", batches(X), "batches are neither"),
    Case("batches without labels", batches([(X,)]), "batches are neither"),
    Case("labels of None", batches([(X, None)]), "are a NoneType"),
    Case("a forward that gives the output alone", batches([BATCH], forward=lambda m, b: m(b[0])), "a pair"),
    Case("a forward that gives three", batches([BATCH], forward=lambda m, b: (m(b[0]), b[1], 1)), "a pair"),
    Case("a forward that gives nothing", batches([BATCH], forward=lambda m, b: None), "gave a NoneType"),
    Case(
        "a forward without the model",
        batches([BATCH], forward=lambda m, b: (0, b[1])),
        "did not call the model",
    ),
    Case(
        "a forward of one argument", batches([BATCH], forward=lambda m: None), "is no function (model, batch)"
    ),
    Case("a forward that is none", batches([BATCH], forward=3), "forward=3 is no function"),
]

# -- arguments --------------------------------------------------------------------------------------


def built(**options: Any) -> Callable[[], None]:
    return lambda: ProbeSet(Mlp(), **{"layers": "0", "num_classes": CLASSES, **options}).detach()


def fitted(**options: Any) -> Callable[[], None]:
    def use() -> None:
        with ProbeSet(Mlp(), "0", CLASSES) as probes:
            assert probes.fit([BATCH], [BATCH], progress=False, **options)["0"].steps > 0

    return use


def loaded(change: Callable[[dict[str, Any]], Any]) -> Callable[[], None]:
    """A damaged state is refused, and nothing has changed."""

    def use() -> None:
        with ProbeSet(Mlp(), "0", CLASSES) as probes:
            probes.model(X)
            probes.step(Y)
            before = probes.evaluate([BATCH], progress=False)
            state = probes.state_dict()
            try:
                probes.load_state_dict(change(state))
            finally:
                assert probes.evaluate([BATCH], progress=False) == before

    return use


def damaged(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> Any:
        (group,) = state["bank"]["groups"]
        return {**state, "bank": {**state["bank"], "groups": [{**group, key: value}]}}

    return change


def result_of(read: Callable[[ProbeResult], Any]) -> Callable[[], Any]:
    return lambda: read(one_step(Mlp(), ["0", "1", "3"]))


NO_NUMBERS = {"0": 0, "-1": -1, "1.5": 1.5, "True": True, "NaN": float("nan"), "a text": "3", "None": None}
CASES += [
    *(
        Case(f"max_epochs: {n}", fitted(max_epochs=v), "a whole number of at least 1")
        for n, v in NO_NUMBERS.items()
    ),
    *(
        Case(f"patience: {n}", fitted(patience=v), "a whole number of at least 1")
        for n, v in NO_NUMBERS.items()
    ),
    Case("max_epochs as numpy's", fitted(max_epochs=np.int64(2))),
    *(
        Case(f"lr: {n}", built(lr=v), "has to be a finite number above 0")
        for n, v in {**NO_NUMBERS, "infinite": float("inf"), "among others": (0.1, -1)}.items()
        if v != 1.5
    ),
    Case("lr as numpy's", built(lr=np.float32(0.1))),
    Case("lr as a generator", built(lr=(rate for rate in (0.1, 0.2)))),
    *(
        Case(f"num_classes: {n}", built(num_classes=v), "a whole number" if v in (1.5, True, "3") else "")
        for n, v in NO_NUMBERS.items()
        if v not in (0, -1, None) and v == v
    ),
    Case("no classes", built(num_classes=0), "at least 2 classes"),
    Case("more classes than fit", lambda: one_step(Mlp(), "0", num_classes=10**12), "there is no memory for"),
    *(
        Case(f"seed: {n}", built(seed=v), "seed=")
        for n, v in NO_NUMBERS.items()
        if v not in (0, -1) or isinstance(v, bool)
    ),
    *(Case(f"every: {n}", built(every=v), "a whole number of at least 1") for n, v in NO_NUMBERS.items()),
    Case("a negative seed", built(seed=-1)),
    Case("a target that is none", built(num_classes=None, targets={"a": 5}), "targets=5 is no target"),
    Case("a target's class", built(num_classes=None, targets=Classification), "is no target"),
    Case("no tags", lambda: MultiLabel(0), "num_labels=0"),
    Case("half an output", lambda: Regression(0.5), "num_outputs=0.5"),  # type: ignore[arg-type]
    Case("an ignore_index that is none", lambda: Classification(3, None), "ignore_index=None"),  # type: ignore[arg-type]
    Case("layers that are none", built(layers=5), "does not say which layers"),
    Case("a state that is none", loaded(lambda s: None), "no state of a ProbeSet"),
    Case("an empty state", loaded(lambda s: {}), "no state of a ProbeSet"),
    Case("a state without probes", loaded(lambda s: {**s, "bank": {}}), "no state of a ProbeSet"),
    Case("a state without statistics", loaded(damaged("statistics", [])), "is damaged"),
    Case("a state of other statistics", loaded(damaged("statistics", [torch.zeros(2)] * 3)), "is damaged"),
    Case("a state of other weights", loaded(damaged("parameters", [torch.zeros(2)] * 2)), "is damaged"),
    Case("a state without weights", loaded(damaged("parameters", [])), "is damaged"),
    Case("a state of no sizes", loaded(damaged("size", None)), "is damaged"),
    Case("a whole state", loaded(lambda s: s)),
    Case("a layer that has no reading", result_of(lambda r: r["4"]), "the nearest names are 0, 1, 3"),
    Case("a target that has no reading", result_of(lambda r: r.of("z")), "the nearest names are y"),
    Case("hook_points of a tensor", lambda: hook_points(Mlp(), X), "a function that calls the model"),  # type: ignore[arg-type]
]
