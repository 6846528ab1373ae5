"""Layouts follow from what the forward does, never from sizes, and the forward does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

from probes import FeatureStore, ProbeError, ProbeSet, hook_points

from .models import CLASSES, assert_identical, random_streams, seed_everything


class Run(nn.Module):
    """A function of modules' outputs, as a model."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def layouts(model: nn.Module, *args: Any) -> dict[str, str]:
    return {point.name: point.layout for point, _ in hook_points(model.eval(), lambda m: m(*args))}


def last(function: Callable[..., Any], *args: Any, **parts: nn.Module) -> str:
    """The layout of what a function of a model's input gives."""
    return layouts(Run(function, **parts), *args)["output"]


MAPS = torch.randn(4, 3, 6, 6)
TOKENS = torch.randn(4, 4, 8)
CONV = {"conv": nn.Conv2d(3, 6, 3, padding=1)}  # channels, height and width are equal
FC = {"fc": nn.Linear(8, 4)}
LSTM = {"lstm": nn.LSTM(8, 4)}


# -- what layers know of themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "layout"),
    [
        (nn.Conv1d(4, 4, 1), (4, 4, 4), "BCL"),
        (nn.Conv2d(4, 4, 1), (4, 4, 4, 4), "BCHW"),
        (nn.Conv3d(4, 4, 1), (4, 4, 4, 4, 4), "BCDHW"),
        (nn.ConvTranspose1d(4, 4, 1), (4, 4, 4), "BCL"),
        (nn.ConvTranspose2d(4, 4, 1), (4, 4, 4, 4), "BCHW"),
        (nn.ConvTranspose3d(4, 4, 1), (4, 4, 4, 4, 4), "BCDHW"),
        (nn.BatchNorm1d(4), (4, 4, 4), "BCL"),
        (nn.BatchNorm2d(4), (4, 4, 4, 4), "BCHW"),
        (nn.GroupNorm(2, 4), (4, 4, 4), "BCL"),
        (nn.InstanceNorm2d(4), (4, 4, 4, 4), "BCHW"),
        (nn.LayerNorm(4), (4, 4, 4, 4), "BHWC"),
        (nn.LayerNorm(4), (4, 4, 4), "BTC"),
        (nn.LayerNorm((4, 4)), (4, 4, 4), "B??"),  # over tokens and channels, or over a map?
        (nn.RMSNorm(4), (4, 4, 4), "BTC"),
        (nn.Linear(4, 4), (4, 4, 4), "BTC"),
        (nn.Linear(4, 4), (4, 4, 4, 4), "BHWC"),
        (nn.Linear(4, 4), (4, 4), "BC"),
        (nn.LSTM(4, 4, batch_first=True), (4, 4, 4), "BTC"),
        (nn.LSTM(4, 4), (4, 4, 4), "TBC"),
        (nn.GRU(4, 4), (4, 4, 4), "TBC"),
        (nn.RNN(4, 4, batch_first=True), (4, 4, 4), "BTC"),
        (nn.LSTM(4, 2, 2, bidirectional=True), (4, 4, 4), "TBC"),
        (nn.TransformerEncoderLayer(4, 2, 4), (4, 4, 4), "TBC"),
        (nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), (4, 4, 4), "BTC"),
        (nn.PReLU(4), (4, 4, 4), "BC?"),
        (nn.PReLU(), (4, 4, 4), "B??"),
        (nn.ReLU(), (4, 4, 4), "B??"),
        (nn.Bilinear(4, 4, 4), (4, 4, 4), "BTC"),
        (nn.Conv2d(4, 4, 1), (4, 4, 4), "CHW"),  # one image without a batch
    ],
)
def test_layers_know_their_dimensions(layer: nn.Module, shape: tuple[int, ...], layout: str) -> None:
    args = [torch.randn(shape)] * (2 if isinstance(layer, nn.Bilinear) else 1)
    found = layouts(nn.Sequential(nn.Identity(), layer) if len(args) == 1 else layer, *args)
    assert found["output"] == layout
    if len(args) == 1:
        assert found["0"] == layout  # what it reads is arranged alike


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(batch_first: bool) -> None:
    model = Run(
        lambda m, q, k: m.attention(q, k, k), attention=nn.MultiheadAttention(8, 2, batch_first=batch_first)
    )
    found = layouts(model, TOKENS, torch.randn(4, 4, 8))
    assert found["attention"] == ("BTC" if batch_first else "TBC")


def test_hidden_state_has_its_batch_in_the_middle() -> None:
    model = Run(lambda m, x: m.lstm(x), lstm=nn.LSTM(8, 4, num_layers=4, batch_first=True))
    with ProbeSet(model, ["lstm:0", "lstm:1.0", "lstm:1.1"], CLASSES, reduce="flatten") as probes:
        _, (hidden, cell) = model(TOKENS[:, :2])
        assert probes._reader.features is not None
        read = {name: value for name, (value, _) in probes._reader.features.items()}
    assert torch.equal(read["lstm:1.0"], hidden.movedim(1, 0).flatten(1))
    assert torch.equal(read["lstm:1.1"], cell.movedim(1, 0).flatten(1))


def test_embeddings_and_what_comes_before_the_evidence() -> None:
    """Token ids (T, B): that the batch is second is known only when the recurrent layer runs."""
    words = nn.Embedding(9, 8)
    ids = torch.randint(9, (4, 4))
    model = Run(lambda m, ids: m.lstm(m.relu(m.words(ids)))[0], words=words, relu=nn.ReLU(), **LSTM)
    found = layouts(model, ids)
    assert [found[name] for name in ("words", "relu", "lstm", "output")] == ["TBC"] * 4
    with ProbeSet(model, ["words", "relu"], CLASSES, reduce="mean") as probes:
        model.train()(ids)
        assert probes._reader.features is not None
        read = probes._reader.features["words"][0]
    torch.testing.assert_close(read, words(ids).mean(0))
    assert layouts(Run(lambda m, i: m.words(i), words=words), ids)["words"] == "BTC"


def test_cells_and_bags() -> None:
    cell = nn.LSTMCell(8, 4)
    assert layouts(Run(lambda m, x: m.cell(x)[0], cell=cell), TOKENS[0])["output"] == "BC"
    assert last(lambda m, ids: m.bag(ids), torch.randint(5, (4, 4)), bag=nn.EmbeddingBag(5, 4)) == "BC"


# -- what functions do with dimensions -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        (lambda m, x: m.conv(x).relu(), "BCHW"),
        (lambda m, x: F.dropout(m.conv(x), 0.5) * 2 + 1, "BCHW"),
        (lambda m, x: 1 / (1 - m.conv(x)) ** 2, "BCHW"),
        (lambda m, x: m.conv(x).add_(1).clamp_(0), "BCHW"),
        (lambda m, x: m.conv(x) * torch.rand(4, 1, 1, 1), "BCHW"),
        (lambda m, x: m.conv(x) * torch.rand(6), "BCHW"),
        (lambda m, x: (m.conv(x[:1]) + 1).relu() * torch.rand(1, 6, 1, 1), "BCHW"),
        (lambda m, x: torch.where(x[:, :1] > 0, m.conv(x), torch.zeros(())), "BCHW"),
        (lambda m, x: m.conv(x).permute(0, 2, 3, 1), "BHWC"),
        (lambda m, x: m.conv(x).permute((0, 3, 1, 2)), "BHCW"),
        (lambda m, x: torch.permute(m.conv(x), (2, 3, 0, 1)), "HWBC"),
        (lambda m, x: m.conv(x).transpose(1, -1), "BHWC"),
        (lambda m, x: torch.transpose(m.conv(x), dim0=0, dim1=3), "HCWB"),
        (lambda m, x: m.conv(x).movedim(1, -1), "BHWC"),
        (lambda m, x: m.conv(x).movedim((2, 3), (0, 1)), "HWBC"),
        (lambda m, x: m.conv(x).mT, "BCHW"),
        (lambda m, x: m.conv(x).permute(3, 2, 1, 0).flatten(0, 1).unflatten(0, (6, 6)), "HWCB"),
        (lambda m, x: m.conv(x).flatten(2), "BCL"),
        (lambda m, x: m.conv(x).flatten(2).mT, "BTC"),
        (lambda m, x: m.conv(x).flatten(-2, -1).transpose(1, 2).view(4, 6, 6, 6), "BHWC"),
        (lambda m, x: m.conv(x).view(4, 6, 36).permute(0, 2, 1).reshape(4, 6, 6, 6), "BHWC"),
        (lambda m, x: m.conv(x).flatten(1), "BC"),
        (lambda m, x: m.conv(x).view(4, -1), "BC"),
        (lambda m, x: m.conv(x).view(4, 2, 3, 6, 6).transpose(1, 2).reshape(4, 6, 6, 6), "BCHW"),
        (lambda m, x: m.conv(x).view(4, 6, 2, 3, 2, 3).mean((3, 5)), "BCHW"),
        (lambda m, x: m.conv(x).unflatten(1, (2, 3)), "BCCHW"),
        (lambda m, x: m.conv(x).reshape(4, 6, 4, 9), "BCHW"),
        (lambda m, x: m.conv(x).reshape(4, 4, 9, 6), "BCCL"),  # both hold channels and heights
        (lambda m, x: m.conv(x).unsqueeze(1).squeeze(1), "BCHW"),
        (lambda m, x: m.conv(x)[:, None].squeeze(), "BCHW"),
        (lambda m, x: m.conv(x).unsqueeze(-1), "BCPP?"),
        (lambda m, x: m.conv(x)[:, :, 0], "BCL"),
        (lambda m, x: m.conv(x)[..., 0, :], "BCL"),
        (lambda m, x: m.conv(x)[:, 0], "BPP"),
        (lambda m, x: m.conv(x)[:, :, ::2, 1:], "BCHW"),
        (lambda m, x: m.conv(x)[:, torch.tensor([0, 2])], "BCHW"),
        (lambda m, x: m.conv(x)[:, [0, 2, 1]], "BCHW"),
        (lambda m, x: m.conv(x).select(2, 0), "BCL"),
        (lambda m, x: m.conv(x).narrow(1, 0, 2), "BCHW"),
        (lambda m, x: m.conv(x).unbind(3)[0], "BCL"),
        (lambda m, x: m.conv(x).chunk(2, 1)[1], "BCHW"),
        (lambda m, x: m.conv(x).split([2, 4], 2)[1], "BCHW"),
        (lambda m, x: torch.cat([m.conv(x), x], 1), "BCHW"),
        (lambda m, x: torch.cat([x, m.conv(x)], 1), "BCHW"),
        (lambda m, x: torch.stack([m.conv(x), m.conv(x)], 1).mean(1), "BCHW"),
        (lambda m, x: torch.stack([m.conv(x), m.conv(x)], -1).mean(-1), "BCHW"),
        (lambda m, x: F.pad(m.conv(x), (1, 1, 0, 0)), "BCHW"),
        (lambda m, x: torch.roll(m.conv(x), 1, 2), "BCHW"),
        (lambda m, x: F.interpolate(m.conv(x), scale_factor=2), "BCHW"),
        (lambda m, x: F.max_pool2d(m.conv(x), 2), "BCHW"),
        (lambda m, x: F.max_pool2d(m.conv(x), 2, return_indices=True)[0], "BCHW"),
        (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 6), "BCHW"),
        (lambda m, x: F.pixel_shuffle(m.conv(x)[:, :4], 2), "BCHW"),
        (lambda m, x: F.unfold(m.conv(x), 2), "BCL"),
        (lambda m, x: F.fold(F.unfold(m.conv(x), 2), 6, 2), "BCHW"),
        (lambda m, x: F.unfold(m.conv(x), (2, 1)).unflatten(1, (6, 2, 1)), "BCDHW"),
        (lambda m, x: F.fold(F.unfold(m.conv(x), 2).view(4, 6, 4, 25).flatten(1, 2), 6, 2), "BCHW"),
        (lambda m, x: m.conv(x).reshape(72, 2, 2, 3).transpose(1, 2).reshape(4, 6, 3, 4, 3), "BCDHW"),
        (lambda m, x: m.conv(x).reshape(72, 2, 6).view(4, 6, 3, 2, 6).flatten(2, 3), "BCHW"),
        (lambda m, x: m.conv(x).unfold(2, 2, 2).flatten(2, 3), "BCHW"),
        (lambda m, x: F.grid_sample(m.conv(x), torch.zeros(4, 6, 6, 2), align_corners=False), "BCHW"),
        (lambda m, x: m.conv(x).mean((2, 3)), "BC"),
        (lambda m, x: m.conv(x).mean((2, 3), keepdim=True), "BCHW"),
        (lambda m, x: m.conv(x).amax(2), "BCL"),
        (lambda m, x: m.conv(x).max(dim=-1)[0], "BCL"),
        (lambda m, x: m.conv(x).sum(1), "BPP"),
        (lambda m, x: m.conv(x).norm(dim=3), "BCL"),
        (lambda m, x: m.conv(x).softmax(1), "BCHW"),
        (lambda m, x: torch.einsum("bchw,cd->bdhw", m.conv(x), torch.rand(6, 5)), "B?PP"),
        (lambda m, x: torch.einsum("bchw->bwhc", m.conv(x)), "BHWC"),
        (lambda m, x: m.conv(x).double().to(torch.float32).contiguous().clone().detach(), "BCHW"),
        (lambda m, x: m.conv(x).expand(4, 6, 6, 6), "BCHW"),
        (lambda m, x: m.conv(x).expand(2, -1, -1, -1, -1).mean(0), "BCHW"),
        (lambda m, x: m.conv(x).repeat(1, 2, 1, 1), "BCHW"),
        (lambda m, x: torch.fft.fft2(m.conv(x)).real, "B???"),  # nothing is known behind it
        (lambda m, x: x, "B???"),
        (lambda m, x: (x - x.mean()) / 2, "B???"),
    ],
)
def test_functions_move_dimensions(function: Callable[..., Any], layout: str) -> None:
    model = Run(function, **CONV)
    assert layouts(model, MAPS)["output"] == layout


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        (lambda m, x: m.fc(x), "BTC"),
        (lambda m, x: m.fc(x) @ m.fc(x).mT, "BPP"),
        (lambda m, x: (m.fc(x) @ m.fc(x).mT).softmax(-1) @ x, "BTC"),
        (lambda m, x: torch.bmm(m.fc(x).transpose(1, 2), m.fc(x)), "B??"),  # two kinds of channels
        (lambda m, x: x @ m.fc.weight.t(), "B??"),
        (lambda m, x: F.scaled_dot_product_attention(m.fc(x), m.fc(x), m.fc(x)), "BTC"),
        (lambda m, x: m.fc(x).view(4, 4, 2, 2).transpose(1, 2), "BCTC"),
        (lambda m, x: m.fc(x).view(16, 4).relu().view(4, 4, 4), "BTC"),
        (lambda m, x: m.fc(x).mean(1), "BC"),
        # Heads and places made by one matrix, as in outlook attention: one part is not of the others' kind.
        (
            lambda m, x: (m.fc(x).unflatten(2, (2, 2)).softmax(-1) @ m.fc(x).unflatten(2, (2, 2))).flatten(2),
            "BTC",
        ),
        (lambda m, x: m.fc(x)[:, 0], "BC"),
        (lambda m, x: torch.cat([torch.zeros(1, 1, 4).expand(4, -1, -1), m.fc(x)], 1), "BTC"),
        (lambda m, x: m.fc(x) + torch.rand(4, 4), "BTC"),
        (lambda m, x: m.fc(x.transpose(0, 1)), "TBC"),
        (lambda m, x: m.fc(x.flatten(0, 1)).unflatten(0, (4, 4)), "BTC"),
    ],
)
def test_functions_of_tokens(function: Callable[..., Any], layout: str) -> None:
    assert last(function, TOKENS, **FC) == layout


def test_a_mixer_knows_its_tokens_and_its_channels() -> None:
    """A matrix over tokens makes no channels of them; what is between two such matrices is neither."""
    parts = {
        "conv": nn.Conv2d(3, 6, 2, 2),
        "norm": nn.LayerNorm(6),
        "up": nn.Linear(9, 6),
        "down": nn.Linear(6, 9),
    }

    def mix(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.conv(x).flatten(2).transpose(1, 2)
        return x + m.down(m.up(m.norm(x).transpose(1, 2))).transpose(1, 2)

    found = layouts(Run(mix, **parts), MAPS)
    assert [found[name] for name in ("norm", "up", "down", "add")] == ["BTC", "BC?", "BCL", "BTC"]


def test_windows_are_rows_that_come_back_as_maps() -> None:
    def windows(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.conv(x).permute(0, 2, 3, 1)
        x = x.view(4, 2, 3, 2, 3, 6).transpose(2, 3).reshape(16, 9, 6)
        x = m.fc(x)
        return x.view(4, 2, 2, 3, 3, 6).transpose(2, 3).reshape(4, 6, 6, 6)

    model = Run(windows, fc=nn.Linear(6, 6), **CONV)
    assert layouts(model, MAPS)["output"] == "BHWC"


def test_packed_sequences_come_back_as_sequences() -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, torch.tensor([4, 2, 3, 1]), batch_first=True, enforce_sorted=False)
        out, _ = m.lstm(packed)
        return pad_packed_sequence(out, batch_first=True)[0]

    found = layouts(Run(run, **LSTM), TOKENS)
    assert (found["lstm"], found["output"]) == ("BTC", "BTC")


def test_two_inputs_are_joined_by_what_unites_them() -> None:
    model = Run(lambda m, x, y: torch.cat([m.conv(x).mean((2, 3)), m.fc(y)], 1), **CONV, fc=nn.Linear(5, 4))
    found = layouts(model, MAPS, torch.randn(4, 5))
    assert (found["fc"], found["output"]) == ("BC", "BC")


def test_a_mask_of_the_arguments_makes_no_batch_of_the_tokens() -> None:
    model = Run(lambda m, x, mask: (m.fc(x) @ m.fc(x).mT + mask).softmax(-1) @ x, **FC)
    assert layouts(model, TOKENS, torch.zeros(4, 4))["output"] == "BTC"


def test_the_position_table_has_no_examples() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(9, 8), nn.Embedding(4, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.words(ids) + self.places(torch.arange(4))

    found = layouts(Positions(), torch.randint(9, (4, 4)))
    assert (found["words"], found["add"]) == ("BTC", "BTC")
    assert "B" not in found["places"]


# -- networks ----------------------------------------------------------------------------------------


def assert_sizes_do_not_matter(model: nn.Module, sizes: list[tuple[int, int]]) -> dict[str, str]:
    found = [layouts(model, torch.randn(2, 3, *size)) for size in sizes]
    for other in found[1:]:
        changed = [name for name in found[0] if other[name] != found[0][name]]
        assert not changed
    return found[0]


def with_evidence(found: dict[str, str]) -> list[str]:
    return [name for name, letters in found.items() if "?" not in letters and {"B", "C"} <= set(letters)]


def test_layouts_do_not_depend_on_the_size_of_the_image() -> None:
    """Channels, height and width coincide: 24 channels at 24 x 24, 24 x 48 and 48 x 24 pixels."""
    small = torchvision.models.SwinTransformer([2, 2], 24, [2, 2], [2, 2], [4, 4], num_classes=3)
    found = assert_sizes_do_not_matter(small, [(48, 48), (48, 96), (96, 48)])
    assert found["features.1.0"] == "BHWC"
    assert found["avgpool"] == "BCHW"
    others = set(found) - set(with_evidence(found))
    assert len(others) == 36  # parts of the tables of position biases, and masks
    assert all(".attn." in name for name in others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "share"),
    [("swin_t", 0.85), ("convnext_tiny", 1), ("resnet18", 1), ("densenet121", 1), ("mobilenet_v3_small", 1)],
)
def test_layouts_of_whole_networks(name: str, share: float) -> None:
    model = torchvision.models.get_model(name)
    found = assert_sizes_do_not_matter(model, [(64, 64), (64, 96), (96, 64)])
    assert len(with_evidence(found)) >= share * len(found)


# -- what is measured then ---------------------------------------------------------------------------


def read(model: nn.Module, layer: str, x: Any, **options: Any) -> torch.Tensor:
    with ProbeSet(model, layer, CLASSES, **options) as probes:
        model.train()(x)
        if probes._reader._taps.error is not None:
            raise probes._reader._taps.error
        assert probes._reader.features is not None
        return probes._reader.features[layer][0]


def test_a_relu_behind_a_convolution_is_read_as_the_convolution() -> None:
    model, x = nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU()), torch.randn(2, 3, 5)
    torch.testing.assert_close(read(model, "1", x, reduce="avg"), model(x).mean(2))


def test_the_input_is_read_as_its_first_reader_does() -> None:
    x = torch.randn(2, 3, 3, 5)
    assert torch.allclose(read(nn.Sequential(nn.Conv2d(3, 3, 1)), "input", x, reduce="avg"), x.mean((2, 3)))
    last = read(nn.Sequential(nn.Linear(5, 3)), "input", x, reduce="avg")
    assert torch.allclose(last, x.mean((1, 2)))


def test_without_evidence_nothing_is_pooled() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(read(nn.Sequential(nn.ReLU()), "0", x, reduce="flatten"), x.relu().flatten(1))
    assert read(nn.Sequential(nn.ReLU()), "0", x, reduce="subset:5").shape == (2, 5)
    assert read(nn.Sequential(nn.ReLU()), "0", x, reduce="auto:5").shape == (2, 5)
    with pytest.raises(ProbeError, match="say it with layout='BCHW'"):
        read(nn.Sequential(nn.ReLU()), "0", x, reduce="avg")
    pooled = read(nn.Sequential(nn.ReLU()), "0", x, reduce="avg", layout="BCHW")
    assert torch.allclose(pooled, x.relu().mean((2, 3)))
    pooled = read(nn.Sequential(nn.ReLU()), "0", x, reduce="avg", layout={"0": "BHWC"})
    assert torch.allclose(pooled, x.relu().mean((1, 2)))


def test_a_layer_that_runs_later_is_read_from_the_forward_after() -> None:
    parts = {"fc": nn.Linear(8, 8), "relu": nn.ReLU(), "head": nn.Linear(8, 2)}
    model = Run(lambda m, x, deep: m.head(m.relu(m.fc(x)) if deep else m.fc(x)), **parts)
    with ProbeSet(model, ["fc", "relu"], CLASSES, reduce="mean") as probes:
        kept = []
        for deep in (False, True, True):
            model(TOKENS, deep)
            kept.append(sorted(probes._reader.features or ()))
    assert kept == [["fc"], ["fc"], ["fc", "relu"]]


def test_store_and_probes_take_the_same_layout(tmp_path: Any) -> None:
    data = [(torch.randn(4, 3, 4, 4), torch.arange(4))]
    how: dict[str, Any] = {"layers": "0", "reduce": "avg", "layout": "BCHW", "progress": False}
    store = FeatureStore.extract(nn.Sequential(nn.ReLU()), data, tmp_path, **how)
    assert store.reductions == {"0": "avg:1 of BCHW 3x4x4"}
    torch.testing.assert_close(torch.from_numpy(store["0"].copy()), data[0][0].relu().mean((2, 3)))


# -- the forward does not notice -----------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x, x, x)[0]
        x = checkpoint(self.layer, x, use_reentrant=False) if self.training else self.layer(x)
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_following_changes_no_bit(training: bool) -> None:
    """Of attention either, which has a faster kernel where nobody looks, with other rounding."""
    outputs = []
    for probed in (False, True):
        seed_everything()
        model, x = Block().train(training), torch.randn(3, 4, 8)
        probes = ProbeSet(model, "head", CLASSES) if probed else None
        with torch.set_grad_enabled(training):
            output = model(x)
        if training:
            output.sum().backward()
        if probes is not None:
            if not training:
                with probes._reader.reading_everything(), torch.no_grad():
                    output = model(x)
                    assert probes._reader.features
            probes.detach()
        gradients = [p.grad for p in model.parameters()]
        outputs.append([output.detach(), gradients, random_streams()])
    assert_identical(outputs[0], outputs[1])
    assert _get_current_function_mode() is None


def test_only_the_first_forward_is_followed() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.randn(2, 3, 4, 4)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(_get_current_function_mode() is not None))
    with ProbeSet(model, "*", CLASSES):
        for _ in range(3):
            model(x)
    assert seen == [True, False, False]


def test_a_forward_that_fails_leaves_nothing_behind() -> None:
    model = Run(lambda m, x: m.fc(x) if x.ndim == 3 else 1 / 0, **FC)
    with ProbeSet(model, "fc", CLASSES, reduce="mean") as probes:
        with pytest.raises(ZeroDivisionError):
            model(torch.randn(4, 8))
        assert _get_current_function_mode() is None
        model(TOKENS)
        assert probes._reader.features is not None


def test_layouts_of_compiled_models() -> None:
    torch.compiler.reset()

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.fc(m.norm(torch.relu(m.conv(x)).flatten(2).mT * 2)).mean(1)

    model = Run(run, conv=nn.Conv2d(3, 6, 1), norm=nn.LayerNorm(6), fc=nn.Linear(6, CLASSES))
    compiled = torch.compile(model, backend="aot_eager")
    plain = ProbeSet(model, ["conv", "flatten", "mul", "fc"], CLASSES, reduce="auto:40")
    model(MAPS)
    expected = plain._reader.features
    plain.detach()
    with ProbeSet(compiled, ["conv", "flatten", "mul", "fc"], CLASSES, reduce="auto:40") as probes:
        for _ in range(2):
            compiled(MAPS)
            assert_identical(probes._reader.features, expected)
    torch.compiler.reset()
