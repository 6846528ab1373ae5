"""Reductions equal a direct computation, on the layouts that models use, and are copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from probes import Auto, ProbeError, ProbeSet, Subset
from probes.features.layout import Features, Layout
from probes.features.random_features import random_subset
from probes.features.reduction import BoundReduction, bind, parse_reduction

from .models import CLASSES, ConvNet, Tagger, images

MAPS = torch.randn(3, 4, 6, 8)  # B, C, H, W
LAST = MAPS.permute(0, 2, 3, 1)
TOKENS = torch.randn(3, 7, 5)  # B, T, C
VALID = torch.arange(7) < torch.tensor([[7], [2], [5]])


def reduced(reduction: Any, features: Features) -> torch.Tensor:
    bound = bind(reduction, features, seed=0, name="layer")
    value = bound(features)[0]
    assert value.dtype == torch.float32
    assert value.shape[-1] == bound.size
    return value


@pytest.mark.parametrize("features", [Features(MAPS, 1), Features(LAST, 3)], ids=["first", "last"])
@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("avg", MAPS.mean((2, 3))),
        ("max", MAPS.amax((2, 3))),
        ("avg:2", MAPS.unflatten(3, (2, 4)).unflatten(2, (2, 3)).mean((3, 5)).flatten(1)),
        ("max:2", MAPS.unflatten(3, (2, 4)).unflatten(2, (2, 3)).amax((3, 5)).flatten(1)),
        ("positions", LAST),
        ("avg:2,positions", F.adaptive_avg_pool2d(MAPS, 2).permute(0, 2, 3, 1)),
        ("avg:2x4", MAPS.unflatten(3, (4, 2)).unflatten(2, (2, 3)).mean((3, 5)).flatten(1)),
        ("max:1x2", MAPS.unflatten(3, (2, 4)).amax((2, 4)).flatten(1)),
        ("auto:4", MAPS.mean((2, 3))),
        ("auto:10", MAPS.mean((2, 3))),  # 2x3 cells of 4 channels are too many, and 1x2 not its proportions
        ("auto:24", F.adaptive_avg_pool2d(MAPS, (2, 3)).flatten(1)),
    ],
)
def test_maps(features: Features, reduction: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(reduced(reduction, features), expected)


def test_flatten_and_subsets_read_the_numbers_as_they_are() -> None:
    flat = MAPS.flatten(1)
    index = random_subset(192, 10, seed=0, name="layer")
    assert torch.equal(reduced("flatten", Features(MAPS, 1)), flat)
    assert torch.equal(reduced("subset:10", Features(MAPS, 1)), flat[:, index])
    assert torch.equal(reduced("subset:1000", Features(MAPS, 1)), flat)


@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_tokens(valid: torch.Tensor | None) -> None:
    value = TOKENS if valid is None else TOKENS.masked_fill(~valid[..., None], float("nan"))
    features = Features(value, 2, valid)
    lengths = [7, 7, 7] if valid is None else [7, 2, 5]
    rows = [x[:n] for x, n in zip(TOKENS, lengths, strict=True)]
    torch.testing.assert_close(reduced("mean", features), torch.stack([r.mean(0) for r in rows]))
    torch.testing.assert_close(reduced("last", features), torch.stack([r[-1] for r in rows]))
    torch.testing.assert_close(reduced("cls", features), TOKENS[:, 0])


def test_last_valid_token_with_padding_on_the_left() -> None:
    features = Features(TOKENS, 2, VALID.flip(1))
    assert torch.equal(reduced("last", features), TOKENS[:, -1])
    assert torch.equal(reduced("cls", features), torch.stack([TOKENS[0, 0], TOKENS[1, 5], TOKENS[2, 2]]))


@pytest.mark.parametrize("reduction", ["avg", "max", "auto"])
def test_pooling_leaves_padding_out(reduction: str) -> None:
    features = Features(TOKENS.masked_fill(~VALID[..., None], 100.0), 2, VALID)
    rows = [x[:n] for x, n in zip(TOKENS, [7, 2, 5], strict=True)]
    pooled = [r.amax(0) if reduction == "max" else r.mean(0) for r in rows]
    torch.testing.assert_close(reduced(reduction, features), torch.stack(pooled))


def test_packed_sequences() -> None:
    lengths = torch.tensor([2, 7, 5])
    packed = pack_padded_sequence(TOKENS, lengths, batch_first=True, enforce_sorted=False)
    features = Layout("BTC").features(packed, None, "lstm")
    assert str(features) == "BTC 7x5"
    assert features.positions == (7,)
    assert torch.equal(features.valid, VALID[[1, 0, 2]])
    rows = [x[:n] for x, n in zip(TOKENS, lengths.tolist(), strict=True)]
    torch.testing.assert_close(reduced("mean", features), torch.stack([r.mean(0) for r in rows]))
    torch.testing.assert_close(reduced("last", features), torch.stack([r[-1] for r in rows]))


def test_bfloat16_is_averaged_in_float32() -> None:
    maps = (MAPS + 100).bfloat16()
    torch.testing.assert_close(reduced("avg", Features(maps, 1)), maps.float().mean((2, 3)))


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    limit=st.integers(1, 200),
    channels_last=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_auto_is_as_fine_as_its_limit_permits(shape: list[int], limit: int, channels_last: bool) -> None:
    value = torch.randn(2, *shape)
    channel = len(shape) if channels_last else 1
    features = Features(value, channel)
    size = reduced(Auto(limit), features).shape[1]
    assert size <= limit
    if len(shape) == 2 and channels_last:
        assert size == min(limit, shape[-1])  # tokens are averaged
    elif features.numbers <= limit:
        assert size == features.numbers
    elif features.channels > limit:
        assert size == limit
    else:  # cells twice as fine in each direction would not fit
        assert size * 3 ** (len(shape) - 1) > limit / 2 ** (len(shape) - 1)
        assert size % features.channels == 0


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((16, 32, 32), "avg:16"),
        ((32, 16, 16), "avg:11"),
        ((64, 8, 8), "flatten"),
        ((64, 56, 56), "avg:8"),
        ((2048, 7, 7), "avg:1"),
        ((64, 56, 84), "avg:6x9"),
        ((64, 84, 56), "avg:9x6"),
        ((8, 10, 20, 20), "avg:5x10x10"),
        ((5000, 2, 2), "avg:1,subset:4096"),
        ((64, 16000), "avg:64"),
        ((512, 8), "flatten"),
        ((5000,), "subset:4096"),
    ],
)
def test_auto_gives_layers_of_one_model_comparable_sizes(shape: tuple[int, ...], text: str) -> None:
    bound = bind("auto", Features(torch.zeros(2, *shape), 1), seed=0, name="l")
    assert bound.text == text
    assert 2000 < bound.size <= 4096


def test_grid_keeps_the_proportions_of_a_map() -> None:
    wide, high = (bind("auto:60", Features(torch.zeros(1, 4, *s), 1), seed=0, name="l").text for s in
                  ((6, 12), (12, 6)))  # fmt: skip
    assert (wide, high) == ("avg:2x5", "avg:5x2")


def test_projection_preserves_norms_on_average() -> None:
    x = torch.randn(1, 300)
    norms = [
        bind("project:32", Features(x, 1), seed=s, name="p")(Features(x, 1))[0].square().sum()
        for s in range(300)
    ]
    ratio = torch.stack(norms) / x.square().sum()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 300**0.5
    assert abs(float(ratio.std()) - (2 / 32) ** 0.5) < 0.06  # as Johnson-Lindenstrauss says


def test_projection_is_linear() -> None:
    a, b = torch.randn(2, 2, 50)
    p = bind("project:9", Features(a, 1), seed=0, name="p")
    sum_of = p(Features(a, 1))[0] + 2 * p(Features(b, 1))[0]
    torch.testing.assert_close(p(Features(a + 2 * b, 1))[0], sum_of)


# -- copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["flatten", "avg", "max", "subset:20", "subset:10000", "project:4"])
def test_copies_survive_an_in_place_change(reduction: str) -> None:
    model, (x, _) = ConvNet(), images(1)[0]
    with ProbeSet(model, ["bn1", "conv2"], CLASSES, reduce=reduction) as probes:
        seen = []
        handle = model.bn1.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
        model(x)
        handle.remove()
        batch = probes._reader.features
        assert batch is not None
    assert (seen[0] < 0).any()  # the ReLU that follows changes these in place
    expected = bind(reduction, Features(seen[0], 1), seed=0, name="bn1")(Features(seen[0], 1))[0]
    assert torch.equal(batch["bn1"][0], expected)


@pytest.mark.parametrize("reduction", ["cls", "last", "mean", "positions"])
def test_copies_of_tokens_share_no_memory(reduction: str) -> None:
    value = TOKENS.clone()
    found = reduced(reduction, Features(value, 2))
    before = found.clone()
    value.zero_()
    assert torch.equal(found, before)


# -- layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "last"])
def test_batch_first_or_second(batch_first: bool, reduction: str) -> None:
    model, x = Tagger(batch_first=batch_first), torch.randn(3, 7, 4)
    with ProbeSet(model, "lstm", CLASSES, reduce=reduction) as probes:
        outputs: list[torch.Tensor] = []
        model.lstm.register_forward_hook(lambda m, a, out: outputs.append(out[0].detach()))
        model(x if batch_first else x.transpose(0, 1))
        batch = probes._reader.features
        assert batch is not None
    tokens = outputs[0] if batch_first else outputs[0].transpose(0, 1)
    torch.testing.assert_close(batch["lstm"][0], tokens.mean(1) if reduction == "mean" else tokens[:, -1])


class Masked(nn.Module):
    """Takes a mask as Hugging Face models do, or a padding mask as torch's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor, **masks: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x)[:, 0])


@pytest.mark.parametrize(
    "mask", [{"attention_mask": VALID.long()}, {"src_key_padding_mask": ~VALID}], ids=lambda m: next(iter(m))
)
def test_attention_masks_mark_the_padding(mask: dict[str, torch.Tensor]) -> None:
    model = Masked()
    with ProbeSet(model, "embed", CLASSES, reduce="mean") as probes:
        model(TOKENS, **mask)
        batch = probes._reader.features
        assert batch is not None
    rows = [model.embed(x[:n]).mean(0) for x, n in zip(TOKENS, [7, 2, 5], strict=True)]
    torch.testing.assert_close(batch["embed"][0], torch.stack(rows))


# -- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["auto:7", "flatten", "avg:3", "max:1", "avg:2x5", "cls", "subset:5", "avg:2,project:9"]
)
def test_text_says_what_was_chosen(text: str) -> None:
    features = Features(TOKENS, 2) if text == "cls" else Features(MAPS, 1)
    bound = bind(text, features, seed=0, name="x")
    again: BoundReduction = bind(bound.text, features, seed=0, name="x")
    assert again.text == bound.text
    assert torch.equal(again(features)[0], bound(features)[0])


def test_reductions_by_glob() -> None:
    model, (x, y) = ConvNet(), images(1)[0]
    choice = {"conv*": "avg", "**": Subset(7)}
    with ProbeSet(model, ["conv1", "relu_2", "fc"], CLASSES, reduce=choice) as probes:
        model(x)
        probes.step(y)
        assert probes.reductions == {"conv1": ("avg:1", 8), "relu_2": ("subset:7", 7), "fc": ("subset:7", 5)}


@pytest.mark.parametrize(
    "text",
    ["median", "avg:0", "avg:x", "avg:2x", "avg:2x0", "flatten:2", "subset:-1", "subset:2x2", "", "cls:1"],
)
def test_text_without_meaning(text: str) -> None:
    with pytest.raises(ProbeError) as error:
        parse_reduction(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reduction", "features"),
    [
        ("avg:7", Features(MAPS, 1)),
        ("avg", Features(MAPS.flatten(1), 1)),
        ("cls", Features(MAPS, 1)),
        ("avg:2x2", Features(TOKENS, 2)),
        ("avg:8", Features(TOKENS, 2)),
        ("avg:2", Features(TOKENS, 2, VALID)),
        ("avg:2x2x2", Features(MAPS, 1)),
        ("avg", Features(MAPS, None)),
        ("mean", Features(TOKENS, None)),
        ("positions", Features(TOKENS, None)),
        ("positions", Features(MAPS.flatten(1), 1)),
        ("positions,flatten", Features(MAPS, 1)),
        ("project:100000", Features(torch.zeros(1, 10000), 1)),
    ],
)
def test_reduction_that_does_not_suit(reduction: str, features: Features) -> None:
    with pytest.raises(ProbeError, match=r"layer 'l'|positions"):
        bind(reduction, features, seed=0, name="l")
