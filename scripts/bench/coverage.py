"""On how many architectures does `layers="auto"` work?

    python scripts/bench/coverage.py                     # torchvision and the smallest of each timm module
    python scripts/bench/coverage.py --quick             # a dozen of them, within a minute
    python scripts/bench/coverage.py --only 'timm:*vit*'
    python scripts/bench/coverage.py --sample 30         # any timm architectures, drawn at random

Each model, with random weights, has probes attached, trains for one forward, backward and `step(y)`, and is
detached. It counts if nothing raised, every module's hooks are again those of before, and at least three
layers have a probe. Layers that "auto" chose and then gave up on are printed with the reason.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain, islice
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from analysis.runs.run import versions
from probes import ProbeSet
from probes.features.auto import automatic_layers
from thermoscope.nests import leaves

QUICK = (
    "torchvision:convnext_tiny",
    "torchvision:inception_v3",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet18",
    "torchvision:swin_t",
    "torchvision:vit_b_32",
    "timm:cait_xxs24_224",
    "timm:densenet121",
    "timm:efficientformer_l1",
    "timm:mixer_s32_224",
    "timm:tiny_vit_5m_224",
    "timm:xcit_nano_12_p16_224",
)
SIDES = (64, 96, 128, 160, 192, 224, 256, 299, 384, 448, 512)  # of the input, in pixels; the first that runs
CLASSES, BATCH, FEWEST_PROBES = 10, 2, 3
MODERATE = 100_000_000  # parameters of a sampled architecture at most


@dataclass(frozen=True)
class Outcome:
    """What became of one model; `failure` is empty if all went well."""

    failure: str
    side: int
    probes: int
    features: tuple[int, int]  # of the smallest and the largest probe
    skipped: dict[str, str]
    seconds: float


def build(name: str) -> nn.Module:
    """The model `torchvision:NAME` or `timm:NAME` with random weights."""
    library, _, architecture = name.partition(":")
    if library == "timm":
        model: nn.Module = timm.create_model(architecture, pretrained=False)
    else:
        model = torchvision.models.get_model(architecture, weights=None)
    return model


def parameters(name: str) -> int:
    """How large a model is, without the memory that it takes."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(name).parameters())


def torchvision_names() -> list[str]:
    return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]


def timm_modules() -> Iterator[list[str]]:
    """The architectures of each timm module that has any, without timm's own test fixtures."""
    for module in timm.list_modules():
        names = [n for n in timm.list_models(module=module) if not n.startswith("test_")]
        if names:
            yield [f"timm:{name}" for name in names]


def smallest_of_each_module(glob: str = "*") -> Iterator[str]:
    for names in timm_modules():
        if any(fnmatch(name, glob) for name in names):
            yield min(names, key=parameters)


def sampled(count: int, seed: int) -> Iterator[str]:
    """Timm architectures of moderate size, drawn at random."""
    names = [name for module in timm_modules() for name in module]
    random.Random(seed).shuffle(names)
    return islice((name for name in names if parameters(name) <= MODERATE), count)


def cover(name: str) -> Outcome:
    """Attach, train one step, detach, and look at what is left."""
    torch.manual_seed(0)
    start = time.perf_counter()
    side, probed, sizes, failure = 0, 0, [0], ""
    skipped: dict[str, str] = {}
    try:
        model = build(name).train()
        side, x = smallest_input(model)
        before = hooks(model)
        with ProbeSet(model, layers="auto", num_classes=CLASSES) as probes:
            loss = sum(t.float().mean() for t in floats(model(x)) if t.requires_grad)
            assert isinstance(loss, torch.Tensor), "the model gave no output to train on"
            loss.backward()
            probes.step(torch.randint(CLASSES, (BATCH,)))
        probed, sizes = len(probes.layers), [size for _, size in probes.reductions.values()]
        silent = set(automatic_layers(model)) - {*probes.layers, *probes.skipped}
        skipped = probes.skipped | {layer: f"layer {layer!r} never runs." for layer in sorted(silent)}
        if hooks(model) != before:
            failure = "hooks are left after detaching"
        elif probed < FEWEST_PROBES:
            failure = f"only {probed} layers have a probe"
    except Exception as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    span = (min(sizes), max(sizes))
    return Outcome(failure, side, probed, span, skipped, time.perf_counter() - start)


def smallest_input(model: nn.Module) -> tuple[int, torch.Tensor]:
    """The smallest square images that the model itself runs on, up to those it was made for."""
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))
    for side in sorted({*SIDES, own[-1]}):
        x = torch.randn(BATCH, own[0], side, side)
        try:
            with torch.no_grad():
                model(x)
        except Exception:
            if side >= max(own[-1], SIDES[-1]):
                raise
        else:
            return side, x
    raise AssertionError("unreachable: the largest side returns or raises")


def floats(output: Any) -> Iterator[torch.Tensor]:
    """The floating-point tensors in whatever the model returned."""
    return (t for t in leaves(output, torch.Tensor) if t.is_floating_point())


def hooks(model: nn.Module) -> list[tuple[int, ...]]:
    """How many hooks of each kind every module has."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
    return [tuple(len(getattr(module, kind)) for kind in kinds) for module in model.modules()]


def report(name: str, outcome: Outcome) -> None:
    verdict = "ok  " if not outcome.failure else "FAIL"
    low, high = outcome.features
    print(
        f"{verdict} {name:<48} {outcome.probes:>3} probes  {low:>5} to {high:>5} features  "
        f"{outcome.side:>3} px  {len(outcome.skipped)} skipped  {outcome.seconds:5.1f} s  {outcome.failure}",
        flush=True,
    )
    for reason in outcome.skipped.values():
        print(f"     skipped: {reason}", flush=True)


def chosen(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.quick:
        names: Iterable[str] = QUICK
    elif arguments.sample:
        names = sampled(arguments.sample, arguments.seed)
    else:
        names = chain(torchvision_names(), smallest_of_each_module(arguments.only))
    return (name for name in names if fnmatch(name, arguments.only))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a representative dozen")
    parser.add_argument("--only", default="*", metavar="GLOB", help="of the models, those whose name matches")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="N random timm architectures instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of models about their own construction
    torch.set_num_threads(1)  # on so little data, more threads would mostly wait for each other
    names, failures = [], {}
    for name in chosen(arguments):
        names.append(name)
        outcome = cover(name)
        report(name, outcome)
        if outcome.failure:
            failures[name] = outcome.failure
        gc.collect()
    print(f"{len(names) - len(failures)} of {len(names)} architectures")
    for name, failure in failures.items():
        print(f"  {name}: {failure}")
    result = {
        "N": len(names) - len(failures),
        "M": len(names),
        "failures": failures,
        "versions": versions(),
        "device": "cpu",
    }
    print(json.dumps(result))
    raise SystemExit(1 if failures or not names else 0)


if __name__ == "__main__":
    main()
