"""Layouts: the true channels and positions of tensors whose sizes say nothing, or another thing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from probes import Pool, ProbeSet

from ..probes.models import CLASSES
from . import Case


class Net(nn.Module):
    """Runs a function of its first part's output; what the function gives is layer `end`."""

    def __init__(self, first: nn.Module, function: Callable[[Any], Any] = lambda h: h):
        super().__init__()
        self.first, self.function, self.end = first, function, nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.end(self.function(self.first(*args, **kwargs)))


def features(model: nn.Module, layer: str, *args: Any, forward: Any = None, **options: Any) -> torch.Tensor:
    """One layer's reduced features of a training forward."""
    with ProbeSet(model, layer, CLASSES, **options) as probes:
        model.train()(*args, **(forward or {}))
        if probes._reader._taps.error is not None:
            raise probes._reader._taps.error
        batch = probes._reader.features
        assert batch is not None
        probes.step(torch.zeros(len(batch[layer][0]), dtype=torch.long))
        return batch[layer][0]


def reads(
    model: nn.Module, x: Any, expected: Callable[[Any], torch.Tensor], **options: Any
) -> Callable[[], None]:
    """`end`, reduced, is this function of what it holds."""

    def use() -> None:
        held: list[Any] = []
        handle = model.end.register_forward_hook(lambda *call: held.append(call[-1]))  # type: ignore[union-attr, operator]
        found = features(model, "end", x, **options)
        handle.remove()
        torch.testing.assert_close(found, expected(held[0].detach()).float(), rtol=1e-3, atol=1e-4)

    return use


# -- maps of every rank: channels first and last, every coincidence of sizes -------------------------

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# (channels, positions): equal, all equal but one, wide, high, one of each
SHAPES = {
    1: [(4, (4,)), (4, (7,)), (7, (4,)), (1, (4,)), (4, (1,))],
    2: [(4, (4, 4)), (4, (4, 6)), (6, (4, 4)), (4, (6, 4)), (1, (4, 4)), (4, (1, 1))],
    3: [(4, (4, 4, 4)), (4, (4, 4, 2)), (2, (4, 4, 4)), (4, (2, 3, 4))],
}


def maps(rank: int, channels: int, positions: tuple[int, ...], kind: str, last: bool) -> Callable[[], None]:
    batch = channels if rank != 2 else 3
    x = torch.randn(batch, 2, *positions)
    net = Net(CONVS[rank](2, channels, 1), lambda h: F.relu(h.movedim(1, -1) if last else h))
    dims = tuple(range(1, rank + 1)) if last else tuple(range(2, rank + 2))
    pools: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "avg": lambda h: h.mean(dims),
        "max": lambda h: h.amax(dims),
        "flatten": lambda h: h.flatten(1),
    }
    return reads(net, x, pools[kind], reduce=kind)


MAPS = [
    Case(f"{kind} of {channels} channels at {positions}, {'last' if last else 'first'}",
         maps(rank, channels, positions, kind, last))
    for rank, shapes in SHAPES.items()
    for (channels, positions), kind, last in product(shapes, ("avg", "max", "flatten"), (False, True))
]  # fmt: skip

GRIDS = [
    Case(f"a grid {grid} of {size}", reads(
        Net(nn.Conv2d(2, 4, 1), lambda h, last=last: h.movedim(1, -1) if last else h),
        torch.randn(2, 2, *size),
        lambda h, grid=grid, last=last: F.adaptive_avg_pool2d(
            h.movedim(-1, 1) if last else h, grid).flatten(1),
        reduce=Pool("avg", grid)))
    for size, grid, last in [((4, 4), (2, 2), False), ((4, 8), (2, 4), True), ((8, 4), (4, 1), False),
                             ((5, 7), (2, 3), True)]
]  # fmt: skip


# -- sequences ---------------------------------------------------------------------------------------


def recurrent(kind: type[nn.RNNBase], batch_first: bool, reduce: str) -> Callable[[], None]:
    """T == B == the channels."""
    net = Net(kind(4, 4, batch_first=batch_first), lambda out: out[0] * 2)
    time = 1 if batch_first else 0
    tokens: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": lambda h: h.mean(time),
        "last": lambda h: h.select(time, -1),
        "cls": lambda h: h.select(time, 0),
        "max": lambda h: h.amax(time),
        "flatten": lambda h: h.movedim(time, 1).flatten(1),
    }
    return reads(net, torch.randn(4, 4, 4), tokens[reduce], reduce=reduce)


RECURRENT = [
    Case(f"{kind.__name__} with batch_first={first}, {reduce}", recurrent(kind, first, reduce))
    for kind, first in product((nn.LSTM, nn.GRU, nn.RNN), (True, False))
    for reduce in ("mean", "last", "cls", "max", "flatten")
]


def transformer(batch_first: bool, layer: str) -> Callable[[], None]:
    def use() -> None:
        part = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=batch_first)
        model = nn.TransformerEncoder(part, 2)
        x = torch.randn(4, 4, 4)
        kept: list[torch.Tensor] = []
        module = model.get_submodule(layer)
        handle = module.register_forward_hook(lambda *call: kept.append(call[-1].detach()))
        found = features(model, layer, x, reduce="mean")
        handle.remove()
        torch.testing.assert_close(found, kept[0].mean(1 if batch_first else 0))

    return use


TRANSFORMERS = [
    Case(f"{layer} of a transformer with batch_first={first}", transformer(first, layer))
    for first in (True, False)
    for layer in ("layers.0", "layers.1.linear1", "layers.0.norm1", "layers.1.dropout2")
]


def packed(reduce: str, *, through: bool) -> Callable[[], None]:
    """Sequences of 4, 2, 3 and 1 of 4 steps, read packed or padded again, T == B == the channels."""

    def use() -> None:
        lstm, x, lengths = nn.LSTM(4, 4), torch.randn(4, 4, 4), torch.tensor([4, 2, 3, 1])
        pack = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(lstm(pack)[0], batch_first=True)[0].detach()
        rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
        pools = {"mean": lambda r: r.mean(0), "max": lambda r: r.amax(0), "last": lambda r: r[-1]}
        expected = torch.stack([pools[reduce](row) for row in rows])
        model = Net(lstm, lambda h: h[0])
        if through:  # padded again: then the padding counts as data, unless there is a mask
            model.function = lambda h: pad_packed_sequence(h[0], batch_first=True)[0]
            mask = torch.arange(4) < lengths[:, None]
            wrapped = Masked(model)
            found = features(
                wrapped, "inner.end", pack, forward={"attention_mask": mask.long()}, reduce=reduce
            )
        else:
            found = features(model, "end", pack, reduce=reduce)
        torch.testing.assert_close(found, expected)

    return use


class Masked(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any, attention_mask: torch.Tensor) -> Any:
        return self.inner(x)


def masked(channels_first: bool) -> Callable[[], None]:
    """A mask (B, T) counts for channels-first sequences, too."""

    def use() -> None:
        conv = nn.Conv1d(4, 4, 1)
        inner = Net(conv, (lambda h: h) if channels_first else (lambda h: h.mT))
        x, mask = torch.randn(4, 4, 4), torch.arange(4) < torch.tensor([4, 2, 3, 1])[:, None]
        found = features(
            Masked(inner), "inner.end", x, forward={"attention_mask": mask.long()}, reduce="auto"
        )
        held = conv(x).detach()
        torch.testing.assert_close(found, (held * mask[:, None]).sum(2) / mask.sum(1, keepdim=True))

    return use


SEQUENCES = [
    *(Case(f"a packed sequence, {how}", packed(how, through=False)) for how in ("mean", "max", "last")),
    *(
        Case(f"a sequence packed and padded, {how}", packed(how, through=True))
        for how in ("mean", "max", "last")
    ),
    Case("a mask of channels-first sequences", masked(True)),
    Case("a mask of channels-last sequences", masked(False)),
    Case("token ids (T, B), T == B", lambda: time_first_ids()),
    Case("a hidden state (layers, B, C) of as many layers as examples", lambda: hidden_state()),
]


def time_first_ids() -> None:
    words, ids = nn.Embedding(9, 4), torch.randint(9, (4, 4))
    model = Net(nn.Sequential(words, nn.LSTM(4, 4)), lambda h: h[0])
    torch.testing.assert_close(features(model, "first.0", ids, reduce="mean"), words(ids).mean(0).detach())


def hidden_state() -> None:
    lstm, x = nn.LSTM(4, 4, num_layers=4, batch_first=True), torch.randn(4, 3, 4)
    found = features(Net(lstm, lambda h: h[1][0]), "end", x, reduce="flatten")
    torch.testing.assert_close(found, lstm(x)[1][0].movedim(1, 0).flatten(1).detach())


# -- batches of one and none, dtypes, memory formats --------------------------------------------------


def typed(dtype: torch.dtype) -> Callable[[], None]:
    conv = nn.Conv2d(3, 3, 1).to(dtype)
    return reads(
        Net(conv), torch.randn(3, 3, 3, 3, dtype=dtype), lambda h: h.float().mean((2, 3)), reduce="avg"
    )


CONV = nn.Conv2d(3, 3, 1)
KINDS = [
    *(Case(f"maps of {dtype}", typed(dtype)) for dtype in (torch.float64, torch.bfloat16)),
    Case("a batch of one", reads(Net(CONV), torch.randn(1, 3, 3, 5), lambda h: h.mean((2, 3)), reduce="avg")),
    Case("one token in a batch of one", reads(Net(nn.Linear(4, 4)), torch.randn(1, 1, 4), lambda h: h[:, 0],
                                              reduce="mean")),
    Case("channels_last memory", reads(
        Net(CONV), torch.randn(3, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        lambda h: h.mean((2, 3)), reduce="avg")),
    Case("an expanded tensor", reads(Net(CONV), torch.randn(1, 3, 3, 3).expand(3, -1, -1, -1),
                                     lambda h: h.mean((2, 3)), reduce="avg")),
    Case("a map cut out of another", reads(
        Net(CONV, lambda h: h[:, :, 1:, :-1]), torch.randn(3, 3, 4, 4), lambda h: h.mean((2, 3)),
        reduce="avg")),
]  # fmt: skip


# -- no evidence, and layout= ------------------------------------------------------------------------

X = torch.randn(3, 3, 3, 3)


def bare(**options: Any) -> Callable[[], torch.Tensor]:
    """A layer without evidence."""
    return lambda: features(Net(nn.ReLU()), "end", X, **options)


def given(letters: Any, dims: tuple[int, ...], batch: int = 0) -> Callable[[], None]:
    def use() -> None:
        found = features(Net(nn.ReLU()), "end", X, reduce="avg", layout=letters)
        torch.testing.assert_close(
            found, X.relu().mean(dims) if batch == 0 else X.relu().mean(dims).movedim(-1, 0)
        )

    return use


def sizes_of_other_ranks() -> None:
    """A layer whose rank changes between steps cannot keep its layout."""
    model = nn.Sequential(nn.Linear(4, 4))
    with ProbeSet(model, "0", CLASSES, reduce="avg") as probes:
        for x in (torch.randn(3, 5, 4), torch.randn(3, 5, 5, 4)):
            model(x)
            probes.step(torch.zeros(3, dtype=torch.long))


def moving_call(first_too: bool) -> Callable[[], None]:
    """Whichever of two calls of one ReLU is left out."""

    def use() -> None:
        model = Twice()
        with ProbeSet(model, ["relu", "relu_1"], CLASSES) as probes:
            for skips in (False, True):
                model(
                    torch.randn(3, 6), skips_first=skips and first_too, skips_second=skips and not first_too
                )
                probes.step(torch.zeros(3, dtype=torch.long))

    return use


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: torch.Tensor, *, skips_first: bool, skips_second: bool) -> torch.Tensor:
        x = self.a(x)
        if not skips_first:
            x = self.relu(x)
        x = self.b(x)
        if not skips_second:
            x = self.relu(x)
        return x


def train_and_eval_lines() -> None:
    """A module that is called in one line while training and in another one otherwise is one place."""
    model = Lines()
    y = torch.zeros(3, dtype=torch.long)
    with ProbeSet(model, "fc", CLASSES) as probes:
        model.train()(torch.randn(3, 6))
        probes.step(y)
        assert probes.evaluate([(torch.randn(3, 6), y)], progress=False)["fc"].n == 3


class Lines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.fc(F.dropout(x))
        return self.fc(x)


def windows() -> None:
    """Windows of one image each: their rows are not the batch's examples."""
    conv = nn.Conv2d(2, 4, 1)
    model = Net(conv, lambda h: h.movedim(1, -1).view(2, 2, 2, 2, 2, 4).transpose(2, 3).reshape(8, 4, 4))
    with ProbeSet(model, ["first", "end"], CLASSES, reduce="avg") as probes:
        model(torch.randn(2, 2, 4, 4))
        probes.step(torch.zeros(2, dtype=torch.long))


def contradiction() -> None:
    """A norm over what a convolution made positions does not make them channels."""
    conv, norm = nn.Conv2d(2, 4, 1), nn.LayerNorm(4)
    model, x = Net(conv, norm), torch.randn(4, 2, 4, 4)
    torch.testing.assert_close(features(model, "end", x, reduce="avg"), norm(conv(x)).mean((2, 3)).detach())


ASKED = "say it with layout='BCHW'"
WITHOUT = [
    *(Case(f"{how} without evidence", bare(reduce=how), ASKED)
      for how in ("avg", "max", "avg:2", "mean", "last")),
    Case("positions without evidence", bare(reduce="positions"), ASKED),
    Case("flatten without evidence", lambda: torch.testing.assert_close(
        bare(reduce="flatten")(), X.relu().flatten(1))),
    Case("auto without evidence, small", lambda: torch.testing.assert_close(bare()(), X.relu().flatten(1))),
    Case("auto without evidence, large", lambda: torch.testing.assert_close(
        bare(reduce="auto:7")(), bare(reduce="subset:7")())),
    Case("channels said to be first", given("BCHW", (2, 3))),
    Case("channels said to be last", given("BHWC", (1, 2))),
    Case("channels said to be in the middle", given("BHCW", (1, 3))),
    Case("a batch said to be last", given("CHWB", (1, 2), batch=1)),
    Case("a batch said to be second", given({"end": "CBHW"}, (2, 3), batch=1)),
    Case("a layout of a glob", given({"e*": "BCHW"}, (2, 3))),
    Case("a layout of the rank of no layer", bare(reduce="flatten", layout="BTC"), "no layer has as many"),
    Case("a layout of another rank", bare(reduce="avg", layout={"end": "BTC"}), "its layout is 'BTC'"),
    Case("a layout of no layer", bare(layout={"typo": "BCHW"}), "layout names 'typo'"),
    Case("a reduction of no layer", bare(reduce={"typo": "avg"}), "reduce names 'typo'"),
    Case("a reduction of a layer that is not probed", bare(reduce={"first": "avg", "end": "flatten"})),
    *(Case(f"the layout {letters!r}", bare(layout=letters), "is none: give one letter")
      for letters in ("", "BC?", "HW", "CHW", "BBC", "BCC", "BHWHC", "bchw", "NCHW", 4, ("B", "C"),
                      {"end": None})),
    Case("another rank than before", sizes_of_other_ranks, "keep the form of the input fixed"),
    Case("a call left out, of two", moving_call(True), "cannot be told apart"),
    Case("the second call left out", moving_call(False), "did not run in this forward"),
    Case("a module called elsewhere in training", train_and_eval_lines),
    Case("windows for examples", windows, "its rows are not examples"),
    Case("a norm over positions", contradiction),
]  # fmt: skip

# -- reductions that are none ------------------------------------------------------------------------


def reduced_by(reduce: Any) -> Callable[[], Any]:
    return lambda: ProbeSet(nn.Sequential(nn.Linear(3, 3)), "0", CLASSES, reduce=reduce)


def built(build: Callable[[], Any]) -> Callable[[], Any]:
    return build


NONE = "is not a reduction"
NO_REDUCTIONS = [
    *(Case(f"reduce={reduce!r}", reduced_by(reduce), NONE)
      for reduce in (None, 4, (), [], ("avg",), {"0": None}, {"0": 1.5}, [None], Pool)),
    *(Case(f"Pool{arguments}", built(lambda arguments=arguments: Pool(*arguments)), "cannot be")
      for arguments in (("foo",), ("avg", 0), ("avg", -1), ("avg", 1.5), ("avg", (2, 0)), ("avg", ()),
                        ("avg", True), ("avg", "2"))),
]  # fmt: skip

CASES = [*MAPS, *GRIDS, *RECURRENT, *TRANSFORMERS, *SEQUENCES, *KINDS, *WITHOUT, *NO_REDUCTIONS]
