"""A network whose first half is dead, and probes that show it (Alain & Bengio 2016, section 3.5).

    python scripts/reproduce/pathological.py --data-dir data

128 fully connected layers of 128 units on MNIST, with one skip connection from the input past the first
64 layers. A probe on every layer trains along with the network.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from _common import in_order, mnist, parser, shuffled, write
from matplotlib.figure import Figure
from torch import nn
from tqdm import tqdm

from analysis import DataSplits, Schedule
from analysis.figures.style import canvas
from probes import ProbeResult, ProbeSet

DEPTH, WIDTH, SKIP = 128, 128, 64
PAPER = """\
The paper saw: the network trains, but the probes on its first half stay useless: the gradient takes the
skip connection, the first 64 layers are dead weight, and nothing else in the training shows it."""


class SkipNetwork(nn.Module):
    """Layer 65 sees the input directly, and the first 64 layers only besides."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(784 if i == 0 else WIDTH, WIDTH) for i in range(DEPTH))
        self.layer = nn.ModuleList(nn.LeakyReLU(0.01) for _ in range(DEPTH))
        self.skip = nn.Linear(784, WIDTH)
        self.logits = nn.Linear(WIDTH, 10)
        for linear in (*self.linear, self.skip):
            # He's initialisation keeps signal and gradient alive through 128 layers.
            nn.init.kaiming_normal_(linear.weight, a=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        h = x
        for i, (linear, activation) in enumerate(zip(self.linear, self.layer, strict=True)):
            h = linear(h) + self.skip(x) if i == SKIP else linear(h)
            h = activation(h)
        logits: torch.Tensor = self.logits(h)
        return logits


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--steps", type=int, default=5000, help="minibatches of 128 (default: 5000)")
    settings = options.parse_args()
    settings.steps //= 10 if settings.quick else 1
    torch.manual_seed(settings.seed)
    data, model = mnist(settings), SkipNetwork()
    with ProbeSet(model, "layer.*", 10, seed=settings.seed) as probes:
        history = {
            0: probes.fit(shuffled(data.train, 128, 1), in_order(data.valid), max_epochs=4, patience=2)
        }
        history |= train(model, probes, data, settings)
        probes.fit(shuffled(data.train, 128, 2), in_order(data.valid), max_epochs=4, patience=2)
        test = probes.evaluate(in_order(data.test), split="test")
    command = (
        f"python scripts/reproduce/pathological.py --steps {settings.steps}" + " --quick" * settings.quick
    )
    figures = {"_by_depth": by_depth(history), "_over_training": over_training(history)}
    write(settings, "pathological", figures, report(history, test), command)


def train(
    model: nn.Module, probes: ProbeSet, data: DataSplits, settings: argparse.Namespace
) -> dict[int, ProbeResult]:
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-4)
    loader, valid = shuffled(data.train, 128, settings.seed), in_order(data.valid)
    measured = Schedule("log:12").steps(settings.steps, len(loader))
    history: dict[int, ProbeResult] = {}
    step = 0
    with tqdm(total=settings.steps, disable=None) as bar:
        while step < settings.steps:
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                probes.step(y)
                step += 1
                bar.update()
                if step in measured and step >= 10:
                    history[step] = probes.evaluate(valid)
                if step == settings.steps:
                    break
    return history


def halves(result: ProbeResult) -> tuple[float, float]:
    """Mean probe error (%) of the layers before the skip connection ends, and behind."""
    errors = 100 * np.array([r.error for r in result.readings])
    return float(errors[:SKIP].mean()), float(errors[SKIP:].mean())


def by_depth(history: dict[int, ProbeResult]) -> Figure:
    figure, (axes,) = canvas()
    steps = [step for step in history if step == 0 or step >= 100]
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, 4).round().astype(int))]
    for step, colour, style in zip(
        shown, ("#7F7F7F", "#56B4E9", "#0072B2", "#D55E00"), (":", "--", "-.", "-"), strict=False
    ):
        errors = [100 * r.error for r in history[step].readings]
        axes.plot(range(1, DEPTH + 1), errors, style, color=colour, lw=1.8, label=f"minibatch {step:,}")
    axes.axvline(SKIP + 0.5, color="black", lw=1)
    axes.annotate("the skip connection\nenters here", (SKIP + 0.5, 3), (SKIP - 3, 3), ha="right", fontsize=8)
    axes.axhline(90, color="black", ls=":", lw=0.8)
    axes.set(xlabel="layer", ylabel="prediction error of the probe (%)", xlim=(0, DEPTH + 1), ylim=(0, 100))
    axes.set_title("128 layers, the first 64 bypassed: probe error by depth (validation)", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.1, 0.1))
    return figure


def over_training(history: dict[int, ProbeResult]) -> Figure:
    figure, (axes,) = canvas()
    steps = [step for step in history if step > 0]
    first, second = zip(*(halves(history[step]) for step in steps), strict=True)
    own = [100 * (history[step].references[0].model_error or float("nan")) for step in steps]
    axes.plot(steps, first, "o-", color="#D55E00", ms=4, label="layers 1 to 64, mean of the probes")
    axes.plot(steps, second, "s-", color="#0072B2", ms=4, label="layers 65 to 128, mean of the probes")
    axes.plot(steps, own, "--", color="black", lw=1.2, label="the network itself")
    axes.set_xscale("log")
    axes.set(xlabel="minibatches", ylabel="prediction error (%)", ylim=(0, 100))
    axes.set_title("The half that learns and the half that is dead (validation)", fontsize=11)
    axes.legend(frameon=False, fontsize=8)
    return figure


def report(history: dict[int, ProbeResult], test: ProbeResult) -> str:
    def row(step: int, result: ProbeResult) -> str:
        first, second = halves(result)
        return (
            f"| {step:,} | {first:.1f} | {second:.1f} | {100 * (result.references[0].model_error or 0):.1f} |"
        )

    rows = "\n".join(row(step, result) for step, result in history.items())
    chosen = [f"layer.{i}" for i in (0, 7, 15, 31, 47, 63, 64, 79, 95, 111, 127)]
    layers = "\n".join(
        f"| {int(n[6:]) + 1} | {100 * test[n].error:.1f} ± {100 * test[n].error_se:.1f} |" for n in chosen
    )
    last = test.references[0].model_error or float("nan")
    first, second = halves(list(history.values())[-1])
    own = 100 * (list(history.values())[-1].references[0].model_error or float("nan"))
    entrance = 100 * test["layer.0"].error
    return f"""\
# A network whose first half is dead

![probe error by depth](pathological_by_depth.png)
![both halves over training](pathological_over_training.png)

Mean prediction error (%) of the probes on both halves, and of the network (validation; fitted probes at
minibatch 0, probes that train along after that):

| minibatch | layers 1 to 64 | layers 65 to 128 | the network |
|---:|---:|---:|---:|
{rows}

At the end, fresh probes fitted to the network held fixed, on the test set (the network: {100 * last:.1f}):

| layer | error (%) |
|---:|---:|
{layers}

{PAPER}

Here the same is seen: at the end the probes on layers 65 to 128 are wrong on {second:.1f}% of the
validation images in the mean, the network itself on {own:.1f}%, the probes on layers 1 to 64 on {first:.1f}%.
One thing is milder than "useless": the first few layers, random features of the image, can still be read
({entrance:.1f}% at layer 1, fitted, test set). What they know is lost on the way to layer 64, and training
does not mend it.
"""


if __name__ == "__main__":
    main()
