"""`layers="auto"` draws the blocks that a person would."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from probes import ProbeSet
from probes.features.auto import automatic_layers


def numbered(prefix: str, *counts: int) -> list[str]:
    """`layer1.0`, `layer1.1`, `layer2.0`, ..."""
    return [f"{prefix}{i}.{j}" for i, count in enumerate(counts, start=1) for j in range(count)]


CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
BLOCKS = {
    "resnet18": ["conv1", *numbered("layer", 2, 2, 2, 2), "fc"],
    "resnet50": ["conv1", *numbered("layer", 3, 4, 6, 3), "fc"],
    "vgg16": [*(f"features.{i}" for i in CONVOLUTIONS), *(f"classifier.{i}" for i in (0, 3, 6))],
    "vit_b_16": ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads.head"],
    "mobilenet_v3_small": [*(f"features.{i}" for i in range(13)), "classifier.0", "classifier.3"],
    "densenet121": [
        *("features.conv0", "features.denseblock1", "features.transition1", "features.denseblock2"),
        *("features.transition2", "features.denseblock3", "features.transition3", "features.denseblock4"),
        "classifier",
    ],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_known_architectures(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert automatic_layers(model) == ["input", *BLOCKS[name]]


def test_more_blocks_than_fit_are_drawn_as_stages() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnet200")
    assert automatic_layers(model) == ["input", "conv1", "layer1", "layer2", "layer3", "layer4", "fc"]


class Loops(nn.Module):
    """A user's own: blocks in a list, a part that never runs, windows as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.windows = nn.Linear(3, 6)
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x + self.windows(x.view(-1, 3)).view(-1, 2, 6).mean(1))


def test_what_cannot_be_probed_is_left_out_with_a_reason() -> None:
    model = Loops()
    with ProbeSet(model, num_classes=2) as probes:
        model(torch.randn(5, 6))
        probes.step(torch.tensor([0, 1, 0, 1, 1]))
        assert probes.layers == ("input", "blocks.0", "blocks.1", "blocks.2", "head")
        assert set(probes.skipped) == {"windows"}
        assert "gives 10 rows for a batch of 5 examples" in probes.skipped["windows"]


# -- models fed with token ids: their embeddings are most of the weights ---------------------------------


class Gpt(nn.Module):
    """Named as GPT-2 is; `tied` or not, its head is as large as its embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.transformer = Decoder()
        self.lm_head = nn.Linear(16, 3000, bias=False)
        if tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        return {"logits": self.lm_head(self.transformer(input_ids))[:, -1]}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(3000, 16), nn.Embedding(32, 16)
        self.h = nn.ModuleList(Attending() for _ in range(3))
        self.ln_f = nn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1])[None])
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"word": nn.Embedding(3000, 16), "place": nn.Embedding(32, 16)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Attending() for _ in range(3))})
        self.pooler, self.classifier = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        x = self.embeddings["word"](input_ids) + self.embeddings["place"](torch.arange(input_ids.shape[1]))
        for block in self.encoder["layer"]:
            x = block(x)
        return {"logits": self.classifier(self.pooler(x[:, 0]).tanh())}


class Stack(nn.Module):
    def __init__(self, shared: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens, self.block = shared, nn.ModuleList(Attending() for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for block in self.block:
            x = block(x)
        return x


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(3000, 16)
        self.encoder, self.decoder = Stack(self.shared), Stack(self.shared)
        self.lm_head = nn.Linear(16, 3000)

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        context = self.encoder(input_ids).mean(1, keepdim=True)
        return self.lm_head(self.decoder(decoder_input_ids) + context)[:, 0]


IDS = torch.randint(3000, (5, 7))


@pytest.mark.parametrize(
    ("model", "batch", "blocks"),
    [
        (Gpt(tied=True), {"input_ids": IDS}, [f"transformer.h.{i}" for i in range(3)]),
        (Gpt(tied=False), {"input_ids": IDS}, [f"transformer.h.{i}" for i in range(3)]),
        (Gpt(tied=True), {"attention_mask": torch.ones(5, 7).long(), "input_ids": IDS}, ["transformer.h.2"]),
        (Bert(), {"input_ids": IDS}, [f"encoder.layer.{i}" for i in range(3)]),
        (T5(), {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]},
         [f"{part}.block.{i}" for part in ("encoder", "decoder") for i in range(2)]),
    ],
    ids=["gpt", "gpt untied", "gpt masked", "bert", "t5"],
)  # fmt: skip
def test_models_of_tokens(model: nn.Module, batch: dict[str, torch.Tensor], blocks: list[str]) -> None:
    y = torch.tensor([0, 1, 0, 1, 1])
    with ProbeSet(model.train(), num_classes=2) as probes:
        model(**batch)
        probes.step(y)
        assert set(blocks) <= set(probes.layers)
        assert all(probes.reductions[block] == ("mean", 16) for block in blocks)
        assert "layer 'input' holds no tensor of floating-point features" in probes.skipped["input"]
        result = probes.evaluate([{**batch, "labels": y}], progress=False)
    assert set(blocks) <= {reading.layer for reading in result.readings}


def test_configurations_of_transformers() -> None:
    """Blocks are found in its architectures, on the meta device."""
    transformers = pytest.importorskip("transformers")
    kinds = {
        "GPT2Config": "h.", "BertConfig": "layer.", "DistilBertConfig": "layer.", "T5Config": "block.",
        "XLMRobertaConfig": "layer.", "Qwen2Config": "layers.",
    }  # fmt: skip
    for name, part in kinds.items():
        config = getattr(transformers, name)()
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
        blocks = [layer for layer in automatic_layers(model) if part in layer]
        assert len(blocks) >= config.num_hidden_layers
