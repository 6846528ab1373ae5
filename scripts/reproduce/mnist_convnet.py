"""Probes on the MNIST convnet, before and after training (Alain & Bengio 2016, section 3.3).

    python scripts/reproduce/mnist_convnet.py --data-dir data

The convnet: conv 5x5x32, ReLU, max-pool 2, conv 5x5x64, ReLU, max-pool 2, fc 512, ReLU, fc 10. A probe
reads all features on each side of every convolution, activation and pooling, and of both fully connected
layers. At initialisation and after training, fresh probes are fitted to the network held fixed, each
stopped early on 10,000 validation images, and measured on the 10,000 test images.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch
import torch.nn.functional as F
from _common import in_order, markdown, mnist, parser, shuffled, write
from torch import nn
from tqdm import tqdm

from analysis import DataSplits, error_by_depth
from analysis.results.probes import side_by_side
from analysis.sources.paper_models import mnist_convnet
from probes import ProbeResult, ProbeSet

PAPER = """\
The paper saw: a test error of about 8% at the input and about 2% on the *random* features of the untrained
network, the biggest gain at the first ReLU; after ten epochs the error falls at every layer except for a
small kink at `fc1_preact`."""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--epochs", type=int, default=10, help="of the network's training (default: 10)")
    settings = options.parse_args()
    torch.manual_seed(settings.seed)
    data, model = mnist(settings), mnist_convnet()
    with ProbeSet(
        model, ["input", "*"], 10, exclude="flatten", reduce="flatten", seed=settings.seed
    ) as probes:
        before = fitted(probes, data, settings)
        print(before, flush=True)
        train(model, data, settings)
        after = fitted(probes, data, settings)
    results = {"at initialisation": before, f"after {settings.epochs} epochs": after}
    figure = error_by_depth(results, title="Linear probes on an MNIST convnet (test set)")
    command = (
        f"python scripts/reproduce/mnist_convnet.py --epochs {settings.epochs}" + " --quick" * settings.quick
    )
    write(settings, "mnist_convnet", {"": figure}, report(results), command)


def fitted(probes: ProbeSet, data: DataSplits, settings: argparse.Namespace) -> ProbeResult:
    train = shuffled(data.train, 128, settings.seed)
    probes.fit(train, in_order(data.valid), max_epochs=20, patience=2)
    return probes.evaluate(in_order(data.test), split="test")


def train(model: nn.Module, data: DataSplits, settings: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loader = shuffled(data.train, 64, settings.seed + 1)
    for epoch in range(settings.epochs):
        for x, y in tqdm(loader, f"epoch {epoch + 1}/{settings.epochs}", leave=False, disable=None):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()


def report(results: dict[str, ProbeResult]) -> str:
    before, after = results.values()
    errors = [100 * r.error for r in after.readings]
    layers = [r.layer for r in after.readings]
    after_error = dict(zip(layers, errors, strict=True))
    rises = [
        f"`{b}` (+{after_error[b] - after_error[a]:.2f})"
        for a, b in pairwise(layers)
        if after_error[b] > after_error[a]
    ]
    start = {r.layer: 100 * r.error for r in before.readings}
    gains = {b: start[a] - start[b] for a, b in pairwise(layers)}
    best = max(gains, key=lambda layer: gains[layer])
    lowest = min(start, key=lambda layer: start[layer])
    kink = after_error["fc1_preact"] - after_error["conv2_pool"]
    pairs = zip(after.readings, before.readings, strict=True)
    falls = all(a.error <= b.error + 2 * b.error_se for a, b in pairs)
    lowers = "lowers every layer's error or leaves it within two standard errors"
    training = lowers if falls else "does not lower the error of every layer"
    seen = "seen" if kink > 0 else "not seen"
    rising = ", ".join(rises) or "no layer"
    own = after.references[0].model_error or float("nan")
    return f"""\
# MNIST convnet: what each layer knows, before and after training

![probe error by layer](mnist_convnet.png)

Prediction error (%) of linear probes on {after.references[0].n:,} test images, ± standard error:

{markdown(side_by_side(results))}

The trained network's own test error is {100 * own:.2f}%.

{PAPER}

Here:

- At initialisation {start[layers[0]]:.2f}% at the input, down to {start[lowest]:.2f}% at `{lowest}`, on
  random features; the biggest gain of one layer is at `{best}` ({gains[best]:.2f} points).
- Training {training}.
- After it, the error changes by {kink:+.2f} points from `conv2_pool` to `fc1_preact`: the paper's small kink
  there is {seen}.
- After it, the error rises against the layer before at: {rising}. (A convolution is affine: a linear probe
  behind it can do nothing that one before it could not.)
"""


if __name__ == "__main__":
    main()
