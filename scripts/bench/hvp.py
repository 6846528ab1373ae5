"""What a Hessian-vector product costs, in gradients, beside curvlinops and PyHessian.

    pip install -e '.[bench]'
    python scripts/bench/hvp.py [--quick]

One product with the Hessian of the mean loss over a fixed data set, in every mode of `Loss.hessian` and as it
chooses itself, and by the peers' operators on the same model, batches and vector, all taking turns. The unit
is one gradient over the same batches, by plain autograd. Peak memory is that of a process of its own, which
includes torch.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import timm
import torch
import torch.nn.functional as F
from _common import alternate, device, finish, peak_memory, ratio
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import resnet18

from analysis.sources.paper_models import lenet, small_lenet
from hessian import HessianError, Loss

MODES = ("forward_reverse", "reverse_reverse", "retained", "linearized")
PEERS = ("curvlinops", "PyHessian")


@dataclass(frozen=True)
class Case:
    """A network and the shape of its data."""

    name: str
    build: Callable[[], nn.Module]
    batches: tuple[int, ...]
    image: tuple[int, int, int]
    classes: int = 10


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)


def cases(quick: bool) -> list[Case]:
    few = 1 if quick else 4
    all_cases = [
        Case("LeNet, 3.3M parameters", lenet, (256,) * (1 if quick else 11) + (184,), (1, 28, 28)),
        Case("small LeNet", small_lenet, (256,) * few + (100,), (1, 28, 28)),
        Case("ResNet-18", lambda: resnet18(num_classes=10), (16,) * few, (3, 64, 64)),
        Case("ViT-tiny", vit, (16,) * few, (3, 64, 64)),
    ]
    return all_cases[:2] if quick else all_cases


def main() -> None:
    warnings.filterwarnings("ignore")  # of the peers and of torch
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two networks, less data: under a minute")
    options = parser.parse_args()
    rounds, warmup = (3, 1) if options.quick else (7, 2)
    figures: dict[str, Any] = {}
    for number, case in enumerate(cases(options.quick)):
        torch.manual_seed(0)
        model = case.build().to(device()).eval()
        variants, notes = {}, {}
        for name in ("gradient", "ours", *MODES, *PEERS):
            try:
                variants[name], notes[name] = variant(name, case, model)
                variants[name]()
            except (RuntimeError, HessianError) as error:
                variants.pop(name, None)
                print(f"{case.name}: {name} does not work: {str(error).splitlines()[0]}")
        disagree(variants)
        seconds = alternate(variants, rounds, warmup)
        size = sum(p.numel() for p in model.parameters())
        print(f"{case.name}: {size:,} parameters, {sum(case.batches):,} examples, {rounds} rounds")
        figures[case.name] = {"parameters": size, "examples": sum(case.batches)}
        for name in variants:
            median, over = 1000 * statistics.median(seconds[name]), ratio(seconds, name, "gradient")
            memory = peak_memory(run_alone, name, number, options.quick)
            print(
                f"  {name:<16} {median:9.1f} ms   {over:5.2f} gradients   peak {memory:7.0f} MiB   "
                f"{notes[name]}",
                flush=True,
            )
            figures[case.name][name] = {"ms": median, "gradients": over, "peak_mib": memory}
    peers = {"curvlinops": version("curvlinops-for-pytorch"), "pyhessian": version("pyhessian")}
    finish(benchmark="hvp", quick=options.quick, rounds=rounds, cases=figures, **peers)


def data_of(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(n, *case.image, generator=generator).to(device()),
            torch.randint(case.classes, (n,), generator=generator).to(device()),
        )
        for n in case.batches
    ]


def variant(name: str, case: Case, model: nn.Module) -> tuple[Callable[[], torch.Tensor], str]:
    """A function that makes one product (n,), and a remark."""
    data, parameters = data_of(case), list(model.parameters())
    size = sum(p.numel() for p in parameters)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(2)).to(device())
    if name == "gradient":
        total = sum(case.batches)

        def gradient() -> torch.Tensor:
            parts = [torch.zeros_like(p) for p in parameters]
            for x, y in data:
                found = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
                for part, g in zip(parts, found, strict=True):
                    part.add_(g, alpha=len(x) / total)
            return torch.cat([part.flatten() for part in parts])

        return gradient, ""
    if name == "curvlinops":
        from curvlinops import HessianLinearOperator

        operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
        )
        return with_math_attention(lambda: operator @ vector), ""
    if name == "PyHessian":
        from pyhessian import hessian

        peer = hessian(model, nn.CrossEntropyLoss(), dataloader=data, cuda=device().type == "cuda")
        parts = [
            part.view(p.shape)
            for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
        product = peer.dataloader_hv_product
        return with_math_attention(lambda: torch.cat([p.flatten() for p in product(parts)[1]])), ""
    ours = Loss(model, F.cross_entropy, data).hessian(None if name == "ours" else name)
    return lambda: ours.multiply(vector[None])[0], f"chose {ours.mode}" if name == "ours" else ""


def with_math_attention(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The peers fail on flash attention, which has no second derivative; ours changes the kernel itself."""

    def product() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return run()

    return product


def disagree(variants: dict[str, Callable[[], torch.Tensor]]) -> None:
    """Times of different results would not compare."""
    products = {name: run().detach() for name, run in variants.items() if name != "gradient"}
    reference = products["ours"]
    for name, product in products.items():
        difference = float((product - reference).norm() / reference.norm())
        if difference > 1e-3:
            print(f"  {name} differs from ours by {difference:.1e} of its length")


def run_alone(name: str, number: int, quick: bool) -> None:
    """Two products, for their memory."""
    warnings.filterwarnings("ignore")
    case = cases(quick)[number]
    run, _ = variant(name, case, case.build().to(device()).eval())
    for _ in range(2):
        run()


if __name__ == "__main__":
    main()
