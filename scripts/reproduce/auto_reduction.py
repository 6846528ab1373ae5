"""What `reduce="auto"` does to the curve of errors by depth, beside the rule that it replaced.

    python scripts/reproduce/auto_reduction.py --cifar10 cifar10.npz [--checkpoint resnet50_v1.safetensors]

A probe's error falls with the layer and with the numbers that it reads. Up to version 0.1.0 `auto` averaged
maps of more than 4,096 numbers to one number per channel and left smaller ones whole, so that two blocks of
one network could be read with 32 and with 4,096 numbers: the step between them was the reduction's. Now all
maps get the finest grid that fits 4,096 numbers. Both are shown for a ResNet-20 that is trained here on
CIFAR-10 at 32 x 32 pixels, and, given its weights, for the ImageNet-trained ResNet-50 at 224 x 224.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import markdown, write
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from analysis import DataSplits, error_by_depth, load_data
from analysis.results.probes import side_by_side
from analysis.sources.paper_models import resnet50_v1
from analysis.sources.preprocessing import Preprocessing, own_preprocessing
from analysis.sources.weights import load_weights
from probes import FeatureStore, ProbeResult, fit_probes

BEFORE, AFTER = "one number per channel, or all", "the finest grid that fits"
# What the old rule chose for each layer.
OLD_RESNET20 = {"input": "flatten", "layer3.*": "flatten", "*.*": "avg", "*": "flatten"}
OLD_RESNET50 = {"layer*.*": "avg", "input": "avg", "conv1": "avg", "*": "flatten"}


class Block(nn.Module):
    """Two convolutions and a shortcut that pads with zero channels (He et al. 2015, option A)."""

    def __init__(self, before: int, channels: int):
        super().__init__()
        self.stride = channels // before
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, h.shape[1] - x.shape[1]))
        return F.relu(h + x)


class ResNet20(nn.Module):
    """The CIFAR network of He et al. (2015), section 4.2: input (B, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(3)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(3)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.layer3(self.layer2(self.layer1(h)))
        logits: torch.Tensor = self.fc(h.mean((2, 3)))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--checkpoint", type=Path, help="weights of Keras' ResNet-50")
    parser.add_argument("--epochs", type=int, default=15, help="of the ResNet-20 (default: 15)")
    parser.add_argument("--examples", type=int, default=3000, help="training rows of the probes")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--quick", action="store_true", help="one epoch and 300 examples: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.examples = 1, 300
    torch.manual_seed(0)
    results = {"ResNet-20, CIFAR-10 at 32 px": resnet20(options)}
    if options.checkpoint is not None:
        results["ResNet-50, CIFAR-10 at 224 px"] = resnet50(options)
    figures = {
        f"_{name.partition(',')[0].lower().replace('-', '')}": error_by_depth(
            both, title=f"{name} (test set)"
        )
        for name, both in results.items()
    }
    command = f"python scripts/reproduce/auto_reduction.py --epochs {options.epochs}"
    write(options, "auto_reduction", figures, report(results), f"{command} --examples {options.examples}")


def resnet20(options: argparse.Namespace) -> dict[str, ProbeResult]:
    preprocessing = Preprocessing(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    data = load_data(f"npz:{options.cifar10}", preprocessing=preprocessing)
    model = ResNet20()
    train(model, data, options.epochs)
    return both(model, data, options.examples, OLD_RESNET20)


def resnet50(options: argparse.Namespace) -> dict[str, ProbeResult]:
    model = resnet50_v1()
    load_weights(model, options.checkpoint)
    preprocessing = own_preprocessing("", model)
    whole = replace(preprocessing, resize=preprocessing.size)  # 32 pixels have no border to spare
    data = load_data(f"npz:{options.cifar10}", preprocessing=whole)
    return both(model, data, options.examples // 2, OLD_RESNET50)


def train(model: nn.Module, data: DataSplits, epochs: int) -> None:
    x, y = next(iter(DataLoader(data.train, batch_size=len(data.train))))  # type: ignore[arg-type]
    steps = epochs * (len(x) // 100)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in tqdm(range(steps), desc="training", disable=None):
        rows = torch.randint(len(x), (100,))
        images = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
        down, right = torch.randint(9, (2,)).tolist()
        images = F.pad(images, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
        F.cross_entropy(model(images), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def both(model: nn.Module, data: DataSplits, examples: int, old: Mapping[str, str]) -> dict[str, ProbeResult]:
    """The probes' test readings by the old rule and by the new one, on the same rows."""
    results = {}
    for name, reduce in ((BEFORE, old), (AFTER, "auto")):
        folder = Path(tempfile.mkdtemp())
        stores = [
            FeatureStore.extract(model, loader(split, rows), folder / str(i), reduce=reduce)
            for i, (split, rows) in enumerate(
                ((data.train, examples), (data.valid, examples // 3), (data.test, examples // 2))
            )
        ]
        test = fit_probes(*stores).test
        assert test is not None
        results[name] = test
        shutil.rmtree(folder)
    return results


def loader(split: Any, rows: int) -> DataLoader[Any]:
    return DataLoader(Subset(split, range(min(rows, len(split)))), batch_size=64)


def report(results: Mapping[str, dict[str, ProbeResult]]) -> str:
    parts = [
        '# `reduce="auto"`: layers of one model at comparable sizes\n',
        (__doc__ or "").split("\n\n", 2)[2],
    ]
    for name, pair in results.items():
        old, new = (r.readings for r in pair.values())
        table = side_by_side(pair)
        table.insert(0, "features before", [f"{r.features} ({r.reduction})" for r in old])
        figure = f"auto_reduction_{name.partition(',')[0].lower().replace('-', '')}.png"
        inner = [r.features for r in new if r.layer.startswith("layer")]
        parts.append(
            f"""
## {name}

![error by depth, by either rule]({figure})

Prediction error (%) on {new[0].n:,} test images, ± standard error. The blocks are read with {min(inner):,} to
{max(inner):,} numbers now; before, it was {min(r.features for r in old if r.layer.startswith("layer")):,} to
{max(r.features for r in old if r.layer.startswith("layer")):,}.

{markdown(table)}"""
        )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
