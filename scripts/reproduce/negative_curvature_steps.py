"""Steps along negative curvature against RMSProp alone, at equal time (Alain, Le Roux & Manzagol, app. 11.E).

    python scripts/reproduce/negative_curvature_steps.py --data-dir data

A LeNet on MNIST, batches of 32. RMSProp, and RMSProp with steps along the tracked most negative eigenvector
with two learning rates, from the same weights over the same batches. Whichever has used the least time takes
the next step, so that a machine's drift meets all alike; what measuring the loss costs is not counted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import mnist, parser, shuffled, write
from matplotlib.figure import Figure
from torch import nn

from analysis.figures.style import BLUE, GREY, ORANGE, canvas
from analysis.sources.paper_models import lenet
from hessian import EigenTracker, NegativeCurvature

RATES = {"RMSProp alone": None, "with steps, lr 0.03": 0.03, "with steps, lr 0.3": 0.3}
COLOURS = dict(zip(RATES, (GREY, BLUE, ORANGE), strict=True))


@dataclass
class Training:
    """One optimizer at work."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    tracker: EigenTracker | None
    batches: Iterator[Any]
    seconds: float = 0.0
    steps: int = 0
    times: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self) -> None:
        x, y = next(self.batches)
        start = time.perf_counter()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.tracker is not None:
            self.tracker.step((x, y))
        self.seconds += time.perf_counter() - start
        self.steps += 1

    def measure(self, x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.no_grad():
            self.losses.append(float(F.cross_entropy(self.model(x), y)))
        self.times.append(self.seconds)


def training(kind: str, seed: int, data: Any, every: int) -> Training:
    torch.manual_seed(seed)
    model = lenet()
    base = torch.optim.RMSprop(model.parameters(), 1e-3)
    rate = RATES[kind]
    if rate is None:
        return Training(model, base, None, endless(data, seed))
    tracker = EigenTracker(model, F.cross_entropy, every=every, examples=40, held_out=48, seed=seed)
    return Training(model, NegativeCurvature(base, tracker, lr=rate), tracker, endless(data, seed))


def endless(data: Any, seed: int) -> Iterator[Any]:
    loader = shuffled(data, 32, seed)
    while True:
        yield from loader


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=20, help="of each training (default: 20)")
    options.add_argument("--seeds", type=int, default=3, help="first weights and orders (default: 3)")
    options.add_argument("--every", type=int, default=50, help="steps between two estimates (default: 50)")
    settings = options.parse_args()
    if settings.quick:
        settings.seconds, settings.seeds, settings.every = 5.0, 1, 20
    data = mnist(settings)
    held = data.valid.tensors[0][:1000], data.valid.tensors[1][:1000]
    found: dict[str, list[Training]] = {kind: [] for kind in RATES}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        runs = {kind: training(kind, seed, data.train, settings.every) for kind in RATES}
        race(runs, held, settings.seconds)
        for kind, run in runs.items():
            found[kind].append(run)
    command = (
        f"python scripts/reproduce/negative_curvature_steps.py --seconds {settings.seconds:g} "
        f"--seeds {settings.seeds} --every {settings.every}" + " --quick" * settings.quick
    )
    write(settings, "negative_curvature_steps", {"": figure(found)}, report(found, settings), command)


def race(runs: dict[str, Training], held: tuple[torch.Tensor, torch.Tensor], seconds: float) -> None:
    for run in runs.values():
        run.measure(*held)
    while True:
        behind = min(runs.values(), key=lambda run: run.seconds)
        if behind.seconds >= seconds:
            return
        behind.step()
        if behind.steps % 10 == 0:
            behind.measure(*held)


def figure(found: dict[str, list[Training]]) -> Figure:
    result, axes = canvas(width=9.6, height=4.0, columns=2)
    for kind, runs in found.items():
        for i, run in enumerate(runs):
            label = kind if i == 0 else None
            steps = [10 * j for j in range(len(run.losses))]
            axes[0].plot(run.times, run.losses, color=COLOURS[kind], lw=1.2, label=label)
            axes[1].plot(steps, run.losses, color=COLOURS[kind], lw=1.2, label=label)
    for one, name in zip(axes, ("seconds of training", "minibatches"), strict=True):
        one.set_yscale("log")
        one.set(xlabel=name, ylabel="cross-entropy (nats), 1,000 validation images")
        one.legend(frameon=False, fontsize=8)
    result.suptitle("LeNet on MNIST: steps along the most negative eigenvector", fontsize=11)
    return result


def at_end(run: Training) -> float:
    """The loss over the last fifth of the time, whose noise is smaller than that of the last one."""
    late = [x for t, x in zip(run.times, run.losses, strict=True) if t >= 0.8 * run.seconds]
    return float(np.mean(late))


def at_step(run: Training, step: int) -> float:
    """The loss about a step: mean of five measurements."""
    at = step // 10
    return float(np.mean(run.losses[max(0, at - 4) : at + 1]))


def spread(values: list[float]) -> str:
    width = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.4f} ± {width:.4f}"


def report(found: dict[str, list[Training]], settings: argparse.Namespace) -> str:
    common = min(run.steps for runs in found.values() for run in runs) // 10 * 10
    rows, verdicts = [], []
    base = found["RMSProp alone"]
    for kind, runs in found.items():
        steps = int(np.mean([run.steps for run in runs]))
        taken = [r.optimizer.curvature_steps for r in runs if isinstance(r.optimizer, NegativeCurvature)]
        rows.append(
            f"| {kind} | {steps} | {int(np.mean(taken)) if taken else 0} | "
            f"{spread([at_end(run) for run in runs])} | {spread([at_step(run, common) for run in runs])} |"
        )
        if taken:
            by_time = sum(at_end(r) < at_end(b) for r, b in zip(runs, base, strict=True))
            by_step = sum(at_step(r, common) < at_step(b, common) for r, b in zip(runs, base, strict=True))
            verdicts.append(
                f"- {kind}: lower than RMSProp alone in {by_time} of {len(runs)} runs at equal time, and in "
                f"{by_step} of {len(runs)} at equal steps."
            )
    table = "\n".join(rows)
    means = {kind: np.mean([at_end(run) for run in runs]) for kind, runs in found.items()}
    best = min(means, key=means.__getitem__)
    verdict = (
        "No gain at equal time: the products cost more than the steps bring."
        if best == "RMSProp alone"
        else f"At equal time the lowest mean loss is that of RMSProp {best}; mind the spread over the seeds."
    )
    return f"""\
# Steps along negative curvature

![loss against seconds and against steps](negative_curvature_steps.png)

Appendix 11.E of "Negative eigenvalues of the Hessian in deep neural networks" (Alain, Le Roux & Manzagol)
proposes to alternate steps of a base optimizer with steps along a running estimate v of the most negative
eigenvector. Here the base is RMSProp (learning rate 0.001), on a LeNet with 3.3 million parameters, with
batches of 32, {settings.seconds:g} seconds for each training, {len(base)} seed(s). The eigenvector is renewed
every {settings.every} steps, far more often than at the tracker's default, because it turns: its overlap with
itself is some 0.5 after 50 steps. The time for that is counted. A step along v is a Newton step with
|lambda|, times a learning rate of its own.

Cross-entropy (nats) on 1,000 validation images, mean ± standard deviation over the seeds. "At equal time" is
the mean over the last fifth of the time, "at step {common}" that of the five measurements up to it:

| optimizer | steps | along v | at equal time | at step {common} |
|---|---:|---:|---:|---:|
{table}

{chr(10).join(verdicts)}

{verdict}
"""


if __name__ == "__main__":
    main()
