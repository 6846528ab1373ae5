"""What Alain & Bengio (2016) leave to future work: other networks, a recurrent one, adversarial examples.

    python scripts/reproduce/future_work.py --cifar10 cifar10.npz --data-dir data [--published]

ResNet-101 and VGG-16 on CIFAR-10 at 64 x 64 pixels: with `--published`, as torchvision publishes them,
trained on ImageNet; else as they are before any training. A recurrent network that reads MNIST row by row:
what does its state know after each row? And the MNIST convnet under attack: in which layer do images that
fool the network stop looking like their class?
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import in_order, markdown, mnist, parser, shuffled, write
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from analysis import AnalysisError, DataSplits, Preprocessing, error_by_depth, load_data, load_model
from analysis.jobs.probe import probe_model
from analysis.jobs.settings import ProbeSettings
from analysis.results.probes import side_by_side
from analysis.sources.paper_models import mnist_convnet
from analysis.sources.weights import load_published
from probes import FeatureStore, FittedProbes, ProbeResult, Reading, evaluate_probes, fit_probes

STEP = 0.1  # of the attack, in units of a pixel's range
HIDDEN = 64
ROWS = 28
FITTED = 10_000  # images that probes under attack are fitted to
REDUCE = "subset:1000"  # random features of a layer that has more


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--cifar10", type=Path, required=True, help="CIFAR-10 as .npz")
    options.add_argument("--published", action="store_true", help="fetch the published weights")
    options.add_argument("--examples", type=int, default=3000, help="images that probes are fitted to")
    settings = options.parse_args()
    if settings.quick:
        settings.examples = 200
    torch.manual_seed(settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        zoo = other_networks(Path(folder), settings)
        states = recurrent(Path(folder), settings)
        attacked = adversarial(Path(folder), settings)
    weights = "trained on ImageNet" if settings.published else "untrained"
    figures = {
        f"_{name}": error_by_depth({name: result}, title=f"{name}, {weights}, on CIFAR-10 (test set)")
        for name, result in zoo.items()
    }
    figures["_recurrent"] = error_by_depth(states, title="A recurrent network that reads MNIST row by row")
    figures["_adversarial"] = error_by_depth(attacked, title="The MNIST convnet and images that fool it")
    command = f"python scripts/reproduce/future_work.py --examples {settings.examples}"
    command += " --published" * settings.published + " --quick" * settings.quick
    write(settings, "future_work", figures, report(zoo, weights, states, attacked), command)


# -- ResNet-101 and VGG-16 -----------------------------------------------------------------------------


def other_networks(folder: Path, settings: argparse.Namespace) -> dict[str, ProbeResult]:
    found = {}
    size = Preprocessing(size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for name, layers in (("resnet101", ("input", "layer*.*.add")), ("vgg16", ("input", "features.*"))):
        try:
            data = load_data(f"npz:{settings.cifar10}", preprocessing=size, seed=settings.seed)
            where = f"torchvision:{name}"
            model = load_published(where) if settings.published else load_model(where, 1000)
        except AnalysisError as error:
            raise SystemExit(str(error)) from None
        how = ProbeSettings(layers=layers, reduce="avg", examples=settings.examples, keep_features=False)
        result = probe_model(folder / name, model, data, how)
        assert result is not None
        found[name] = result
        print(f"{name}\n{result}\n", flush=True)
    return found


# -- a recurrent network -------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Reads an image (B, 1, 28, 28) row by row, into two LSTM cells on top of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.LSTMCell(ROWS, HIDDEN), nn.LSTMCell(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lower = upper = None
        for row in x.squeeze(1).unbind(1):
            lower = self.lower(row, lower)
            upper = self.upper(lower[0], upper)
        assert upper is not None
        return self.head(upper[0])


def recurrent(folder: Path, settings: argparse.Namespace) -> dict[str, ProbeResult]:
    """What the cells' outputs know after each fourth row; the calls of a module are numbered."""
    model, data = Recurrent(), mnist(settings)
    calls = ["", *(f"_{i}" for i in range(1, ROWS))][3::4]
    layers = [f"{cell}{call}" for call in calls for cell in ("lower", "upper")]
    before = fit(folder / "untrained", model, data, layers)
    train(model, data.train, 3, settings)
    after = fit(folder / "trained", model, data, layers)
    return {
        f"{cell} cell, {when}": by_row(result, cell)
        for when, result in (("untrained", before.test), ("trained", after.test))
        if result is not None
        for cell in ("lower", "upper")
    }


def by_row(result: ProbeResult, cell: str) -> ProbeResult:
    """One cell's readings, under the number of rows that it has read."""
    own = [reading for reading in result.readings if reading.layer.startswith(cell)]
    named = (replace(r, layer=f"row {int(r.layer.partition('_')[2]) + 1}") for r in own)
    return replace(result, readings=tuple(named))


# -- adversarial examples ------------------------------------------------------------------------------


def adversarial(folder: Path, settings: argparse.Namespace) -> dict[str, ProbeResult]:
    """Probes fitted to clean images, on these and on images one step away, at random or uphill."""
    model, data = mnist_convnet(), mnist(settings)
    train(model, data.train, 2, settings)
    data = replace(data, train=Subset(data.train, range(min(FITTED, len(data.train)))))
    layers = ["input", "conv*", "fc1*", "logits"]
    fitted = fit(folder / "clean", model, data, layers)
    results = {"clean": evaluate_probes(fitted, FeatureStore.open(folder / "clean" / "test"))}
    batches = list(in_order(data.test))
    moved = {
        "a random step": [(x + STEP * torch.randn_like(x).sign(), y) for x, y in batches],
        "a step uphill": [(x + STEP * uphill(model, x, y), y) for x, y in batches],
    }
    for name, images in moved.items():
        store = FeatureStore.extract(model, images, folder / name, layers=layers, reduce=REDUCE)
        results[name] = evaluate_probes(fitted, store)
    return results


def uphill(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Signs of the gradient of the loss (Goodfellow, Shlens & Szegedy 2015)."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return gradient.sign()


# -- shared --------------------------------------------------------------------------------------------


def train(model: nn.Module, split: Any, epochs: int, settings: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(model.train().parameters(), 1e-3)
    for epoch in range(epochs):
        for x, y in tqdm(shuffled(split, 64, settings.seed + epoch), leave=False, disable=None):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()


def fit(folder: Path, model: nn.Module, data: DataSplits, layers: list[str]) -> FittedProbes:
    """Probes at their optimum."""
    train, valid, test = (
        FeatureStore.extract(model, in_order(part), folder / name, layers=layers, reduce=REDUCE)
        for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test))
    )
    return fit_probes(train, valid, test)


# -- what was seen -------------------------------------------------------------------------------------


def report(
    zoo: dict[str, ProbeResult],
    weights: str,
    states: dict[str, ProbeResult],
    attacked: dict[str, ProbeResult],
) -> str:
    parts = ["# Future work of the paper: other networks, a recurrent one, adversarial examples\n"]
    for name, result in zoo.items():
        first, last = result.readings[0], result.readings[-1]
        best = min(result.readings, key=lambda r: r.error)
        parts.append(f"""\
## {name}, {weights}

![error by depth](future_work_{name}.png)

Prediction error on {result.references[0].n:,} test images of CIFAR-10 at 64 x 64 pixels, of probes on the
mean of each channel: {percent(first)} at the input, {percent(best)} at its lowest (`{best.layer}`),
{percent(last)} at `{last.layer}`.
""")
    parts.append(f"""\
## A recurrent network

![error by row](future_work_recurrent.png)

Two LSTM cells of {HIDDEN} units on top of each other read the 28 rows of a digit. `lower_3` is the fourth
call of the module `lower`, so each point of time has a probe of its own. Prediction error (%):

{markdown(side_by_side(states))}
""")
    clean, shaken, fooled = attacked.values()
    parts.append(f"""\
## Adversarial examples

![error by layer](future_work_adversarial.png)

The probes are fitted to clean images, {FITTED:,} at most, on 1,000 random features of a layer that has more,
and stay as they are; the images move by {STEP} of a pixel's range, at random or up the gradient of the
network's loss. Prediction error (%) on the test images:

{markdown(side_by_side(attacked))}

Where the probe reads the pixels themselves, error rises from {percent(clean.readings[0])} to
{percent(shaken.readings[0])} by the random step and to {percent(fooled.readings[0])} by the one uphill;
at the logits, from {percent(clean.readings[-1])} to {percent(shaken.readings[-1])} and
{percent(fooled.readings[-1])}.
""")
    return "\n".join(parts)


def percent(reading: Reading) -> str:
    return f"{100 * reading.error:.1f}% (± {100 * reading.error_se:.1f})"


if __name__ == "__main__":
    main()
