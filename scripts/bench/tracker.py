"""What the eigenvalue tracker costs a training run, and how right it is.

    python scripts/bench/tracker.py --data-dir data [--quick]

A LeNet (3.3 million parameters) on MNIST, batches of 32, RMSProp. Two copies from the same weights take
turns, step by step, one of them with an `EigenTracker` at its defaults; they must end bit for bit alike.
Trackers with other seeds then look at the same run, without being timed. Their eigenvalues at the end stand
beside those of the Hessian over a fixed 5% of the training data, by `extreme_eigenpairs`.

The most negative eigenvalue of a part of the data lies outside that of the whole: a direction of one bad
example counts more among fewer. And minibatches just trained on bend less than other data.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from _common import device, finish
from torch import nn
from torch.utils.data import DataLoader, Subset

from analysis.sources.data import load_data
from analysis.sources.paper_models import lenet
from hessian import EigenTracker, Loss, extreme_eigenpairs, fixed_subset

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default="data", help="folder that holds MNIST/ (default: data)")
    parser.add_argument("--seeds", type=int, default=6, help="of the choice of examples (default: 6)")
    parser.add_argument("--quick", action="store_true", help="60 steps, 0.5%% of the data: under a minute")
    options = parser.parse_args()
    steps, fraction = (60, 0.005) if options.quick else (300, 0.05)
    every: dict[str, Any] = {"every": 60} if options.quick else {}
    train = load_data("torchvision:MNIST", data_dir=options.data_dir, seed=0).train
    batches = first_batches(train, steps)

    torch.manual_seed(0)
    start = lenet().to(device())
    seconds, model, tracked = timed(start, batches, EigenTracker, **every)
    assert all(map(torch.equal, model.parameters(), tracked.parameters())), "the tracker changed the training"
    trackers = others(start, batches, options.seeds, **every)
    overhead = sum(seconds["with"]) / sum(seconds["without"]) - 1
    print(f"{steps} steps: {sum(seconds['without']):.1f} s, with the tracker {100 * overhead:+.1f}%")
    print(f"  median step {1000 * statistics.median(seconds['without']):.1f} ms", flush=True)

    subset = fixed_subset(train, fraction)
    spectrum = extreme_eigenpairs(Loss(model, F.cross_entropy, subset).hessian(), 1, 1, tol=2e-3)
    figures: dict[str, Any] = {}
    for end in ("largest", "smallest"):
        exact = getattr(spectrum, end)[0].value
        pairs = [getattr(tracker, end) for tracker in trackers]
        errors = [pair.value / exact - 1 for pair in pairs]
        within = sum(abs(pair.value - exact) <= 2 * pair.uncertainty for pair in pairs)
        rms = math.sqrt(statistics.fmean(e * e for e in errors))
        readings = ", ".join(f"{pair.value:.3g} ± {pair.uncertainty:.2g}" for pair in pairs)
        print(f"{end}: exact {exact:.4g}; tracked {readings}")
        print(
            f"  error: mean {100 * statistics.fmean(errors):+.0f}%, root mean square {100 * rms:.0f}%; "
            f"{within} of {len(pairs)} within twice their uncertainty"
        )
        figures[end] = {
            "exact": exact,
            "residual": getattr(spectrum, end)[0].residual,
            "tracked": [pair.value for pair in pairs],
            "uncertainty": [pair.uncertainty for pair in pairs],
            "mean_error": statistics.fmean(errors),
            "rms_error": rms,
        }
    finish(
        benchmark="tracker",
        quick=options.quick,
        steps=steps,
        overhead=overhead,
        products=trackers[0].products,
        fraction=fraction,
        **figures,
    )


def first_batches(train: Any, steps: int) -> list[Any]:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: steps * BATCH]
    loader = DataLoader(Subset(train, order.tolist()), BATCH)
    return [(x.to(device()), y.to(device())) for x, y in loader]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(
    start: nn.Module, batches: list[Any], tracker: type[EigenTracker], **options: Any
) -> tuple[dict[str, list[float]], nn.Module, nn.Module]:
    """Seconds of each step without and with a tracker, and both models at the end."""
    models = {name: copy.deepcopy(start) for name in ("without", "with")}
    optimizers = {name: torch.optim.RMSprop(m.parameters(), 1e-3) for name, m in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with tracker(models["with"], F.cross_entropy, **options) as tracking:
        for x, y in batches:
            for name, model in models.items():
                begin = time.perf_counter()
                step(model, optimizers[name], x, y)
                if name == "with":
                    tracking.step((x, y))
                if x.is_cuda:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begin)
    return seconds, models["without"], models["with"]


def others(start: nn.Module, batches: list[Any], seeds: int, **options: Any) -> list[EigenTracker]:
    """Trackers with different seeds, of one and the same run."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    trackers = [EigenTracker(model, F.cross_entropy, seed=seed, **options) for seed in range(seeds)]
    for x, y in batches:
        step(model, optimizer, x, y)
        for tracker in trackers:
            tracker.step((x, y))
    return trackers


if __name__ == "__main__":
    main()
