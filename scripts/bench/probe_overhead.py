"""What probes cost a training step, beside the loop that one would write by hand.

    python scripts/bench/probe_overhead.py [--quick]

The MNIST convnet with probes on all features of its input and nine layers; ResNet-50 with 17 probes, on the
input and after each residual addition, pooled per channel; and plain networks of 16 to 1,000 layers of 256
units, where the cost per layer must stay what it is. Loops take turns, each with a network of its own from
the same weights: without probes, with a `ProbeSet`, with one that trains on every fourth step, and with a
hook, an `nn.Linear` and an Adam per layer in a Python loop (whose hooks cannot reach the addition, so they
read the ReLU behind it). A round is four steps of each loop, of ResNet-50 one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _common import alternate, device, finish, peak_memory, ratio
from torch import nn
from torchvision.models import resnet50

from analysis.sources.paper_models import mnist_convnet
from probes import ProbeSet

CONVNET = [
    "conv1",
    "conv1_relu",
    "conv1_pool",
    "conv2",
    "conv2_relu",
    "conv2_pool",
    "fc1_preact",
    "fc1_relu",
    "logits",
]
BLOCKS = [f"layer{i}.{j}" for i, n in enumerate((3, 4, 6, 3), start=1) for j in range(n)]
EVERY = 4
LOOPS = ("without", "probes", f"every {EVERY}", "by hand")
DEPTHS = (16, 128, 512, 1000)


@dataclass(frozen=True)
class Case:
    """A network, its input and the layers to probe.

    Attributes:
        steps: training steps in a round.
        rounds: rounds that are timed, and before them that are not; and these of `--quick`.
        loops: which take part.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of a batch
    classes: int
    probe: tuple[str, ...]
    by_hand: tuple[str, ...]
    reduce: str
    steps: int
    rounds: tuple[int, int]
    quick_rounds: tuple[int, int]
    loops: tuple[str, ...] = LOOPS


def cases(quick: bool) -> list[Case]:
    resnet = (8, 3, 96, 96) if quick else (32, 3, 224, 224)
    if torch.cuda.is_available():
        resnet = (64, 3, 224, 224)
    return [
        Case(
            "MNIST convnet",
            mnist_convnet,
            (128, 1, 28, 28),
            10,
            ("input", *CONVNET),
            tuple(CONVNET),
            "flatten",
            EVERY,
            (40, 11),
            (5, 3),
        ),
        Case(
            "ResNet-50",
            resnet50,
            resnet,
            1000,
            ("input", "layer*.*.add"),
            tuple(BLOCKS),
            "avg",
            1,
            (10, 2),
            (3, 1),
            ("without", "probes", "by hand"),
        ),
        *(deep_case(depth) for depth in DEPTHS[: 2 if quick else None]),
    ]


def deep_case(depth: int) -> Case:
    names = tuple(map(str, range(depth)))
    return Case(
        f"{depth} layers of 256 units",
        lambda: deep(depth),
        (128, 256),
        10,
        names,
        names,
        "flatten",
        EVERY,
        (10 if depth < 500 else 5, 4),  # the first ten steps look at every batch's statistics
        (2, 3),
    )


def deep(depth: int) -> nn.Module:
    layers = (nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*layers, nn.Linear(256, 10))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller batches and fewer rounds: about a minute"
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for number, case in enumerate(cases(options.quick)):
        repeats, warmup = case.quick_rounds if options.quick else case.rounds
        torch.manual_seed(0)
        model = case.build()
        loops = {loop: round_of(loop, case, copy.deepcopy(model)) for loop in case.loops}
        seconds = alternate(loops, repeats, warmup)
        print(f"{case.name}, batch {'x'.join(map(str, case.shape))}, {repeats} rounds of {case.steps} steps")
        figures[case.name] = {"batch": case.shape, "rounds": repeats, "steps": case.steps}
        for loop in case.loops:
            median = 1000 * statistics.median(seconds[loop]) / case.steps
            over = ratio(seconds, loop, "without")
            memory = peak_memory(run_alone, loop, number, options.quick)
            print(f"  {loop:<8} {median:9.1f} ms   x {over:.3f}   peak {memory:7.0f} MiB", flush=True)
            figures[case.name][loop] = {"ms": median, "ratio": over, "peak_mib": memory}
        extra = statistics.median(a - b for a, b in zip(seconds["probes"], seconds["without"], strict=True))
        per_layer = 1e6 * extra / case.steps / len(case.by_hand)
        print(
            f"  probes over by hand: x {ratio(seconds, 'probes', 'by hand'):.3f}; {per_layer:.0f} us a layer"
        )
        figures[case.name]["probes over by hand"] = ratio(seconds, "probes", "by hand")
        figures[case.name]["us a layer"] = per_layer
    finish(benchmark="probe_overhead", quick=options.quick, cases=figures)


def round_of(loop: str, case: Case, model: nn.Module) -> Callable[[], None]:
    """A function that takes the steps of one round."""
    step = step_of(loop, case, model)

    def steps() -> None:
        for _ in range(case.steps):
            step()

    return steps


def step_of(loop: str, case: Case, model: nn.Module) -> Callable[[], None]:
    """A function that takes one training step on a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    model.to(device())
    x = torch.randn(case.shape, generator=generator).to(device())
    y = torch.randint(case.classes, case.shape[:1], generator=generator).to(device())
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    after: Callable[[torch.Tensor], None] = lambda y: None  # noqa: E731
    if loop == "by hand":
        after = HandWritten(model, case).step
    elif loop != "without":
        every = 1 if loop == "probes" else EVERY
        after = ProbeSet(model, case.probe, case.classes, reduce=case.reduce, every=every).step

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(y)

    return step


class HandWritten:
    """The usual probe loop."""

    def __init__(self, model: nn.Module, case: Case):
        self.pooled, self.classes = case.reduce == "avg", case.classes
        self.features: dict[str, torch.Tensor] = {}
        self.heads: dict[str, tuple[nn.Linear, torch.optim.Adam]] = {}
        model.register_forward_pre_hook(lambda module, args: self.keep("input", args[0]))
        for name in case.by_hand:
            module = model.get_submodule(name)
            module.register_forward_hook(lambda module, args, out, name=name: self.keep(name, out))

    def keep(self, name: str, out: torch.Tensor) -> None:
        out = out.detach()
        self.features[name] = out.mean((2, 3)) if self.pooled else out.flatten(1).clone()

    def step(self, y: torch.Tensor) -> None:
        for name, features in self.features.items():
            if name not in self.heads:
                linear = nn.Linear(features.shape[1], self.classes, device=features.device)
                self.heads[name] = (linear, torch.optim.Adam(linear.parameters(), 1e-3))
            linear, optimizer = self.heads[name]
            optimizer.zero_grad()
            F.cross_entropy(linear(features), y).backward()
            optimizer.step()


def run_alone(loop: str, number: int, quick: bool) -> None:
    """Three steps of one loop, for its memory."""
    case = cases(quick)[number]
    step = step_of(loop, case, case.build())
    for _ in range(3):
        step()


if __name__ == "__main__":
    main()
