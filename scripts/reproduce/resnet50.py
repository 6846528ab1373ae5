"""Probes on the ImageNet-trained ResNet-50 (Alain & Bengio 2016, section 4.1 and its table).

    python scripts/reproduce/resnet50.py --checkpoint resnet50_v1.safetensors --imagenet ~/imagenet
    python scripts/reproduce/resnet50.py --checkpoint resnet50_v1.safetensors --cifar10 cifar10.npz \\
        --samples imagenet_samples

The network of the paper, in torchvision's names: the model's input and each of the 16 residual additions
have a probe, which reads the mean of each channel. With ImageNet (folders `train` and `val`) this is the
paper's table. Without, the same network on CIFAR-10 at 224 x 224 pixels, and on one image of each ImageNet
class, with five coarse groups of classes as labels. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _common import markdown, write
from torch.utils.data import Dataset

from analysis import AnalysisError, DataSplits, error_by_depth, graph_figure, load_data, model_graph
from analysis.jobs.probe import probe_model
from analysis.jobs.settings import ProbeSettings
from analysis.results.probes import side_by_side
from analysis.sources.paper_models import resnet50_v1
from analysis.sources.preprocessing import own_preprocessing
from analysis.sources.weights import load_weights
from probes import ProbeResult, Reading

PAPER = """\
The paper saw, on ImageNet: 0.99 at the input, 0.94 after the first addition, then monotonically down to 0.31
after the sixteenth."""
SETTINGS = ProbeSettings(layers=("input", "layer*.*.add"), reduce="avg", dtype="float16")
FALLS = "It falls monotonically."
RISES = "It rises (± the standard error of the difference) at"
GROUPS = ("dogs", "birds", "other animals", "artefacts", "food, nature and plants")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="weights of Keras' ResNet-50")
    parser.add_argument("--imagenet", type=Path, help="ImageNet, with folders train and val")
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz")
    parser.add_argument("--samples", type=Path, help="a folder for each of the 1,000 classes of ImageNet")
    parser.add_argument("--run", type=Path, default=Path("runs/resnet50"), help="run directories go below")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--examples", type=int, default=0, help="of the training set (default: all)")
    parser.add_argument("--quick", action="store_true", help="300 examples: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.examples = 300
    model = resnet50_v1()
    load_weights(model, options.checkpoint)
    settings = replace(SETTINGS, examples=options.examples)
    results: dict[str, ProbeResult] = {}
    for name, data in data_sets(options, own_preprocessing("", model)).items():
        folder = options.run / name.partition(",")[0].lower().replace(" ", "_")
        result = probe_model(folder, model, data, settings)
        assert result is not None
        results[name] = result
        print(f"{name}\n{result}\n", flush=True)
    figures = {
        "": error_by_depth(results, title="Linear probes on the ImageNet-trained ResNet-50 (test set)")
    }
    name, first = next(iter(results.items()))
    graph = model_graph(model, lambda m: m(torch.zeros(2, 3, 224, 224)), [r.layer for r in first.readings])
    figures["_network"] = graph_figure(graph, first, title=f"ResNet-50, probed on {name}")
    command = "python scripts/reproduce/resnet50.py"
    command += f" --examples {options.examples}" if options.examples else ""
    write(options, "resnet50", figures, report(results), command)


def data_sets(options: argparse.Namespace, preprocessing: Any) -> dict[str, DataSplits]:
    try:
        if options.imagenet is not None:
            return {"ImageNet": load_data(f"folder:{options.imagenet}", preprocessing=preprocessing)}
        if options.cifar10 is None or options.samples is None:
            raise AnalysisError("give --imagenet DIR, or --cifar10 FILE and --samples DIR.")
        whole = replace(preprocessing, resize=preprocessing.size)  # 32 pixels have no border to spare
        samples = load_data(f"folder:{options.samples}", preprocessing=preprocessing)
        return {
            "CIFAR-10": load_data(f"npz:{options.cifar10}", preprocessing=whole),
            "ImageNet samples, 5 groups": grouped(samples),
        }
    except AnalysisError as error:
        raise SystemExit(str(error)) from None


class Grouped(Dataset[Any]):
    """ImageNet with coarse labels."""

    def __init__(self, split: Any):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = self._split[i]
        return x, group_of(y)


def grouped(data: DataSplits) -> DataSplits:
    return DataSplits(Grouped(data.train), Grouped(data.valid), Grouped(data.test), len(GROUPS))


def group_of(label: int) -> int:
    """Of one of the 1,000 classes: WordNet's numbers, by which they are sorted, keep kinds together."""
    if 151 <= label <= 268:
        return 0
    if 7 <= label <= 24 or 80 <= label <= 100 or 127 <= label <= 146:
        return 1
    if label <= 397:
        return 2
    return 3 if label <= 922 else 4


def report(results: dict[str, ProbeResult]) -> str:
    parts = [
        "# ResNet-50: what is known after each residual addition\n",
        "![error by depth](resnet50.png)\n",
        "![the network, coloured by prediction error](resnet50_network.png)\n",
        PAPER,
    ]
    for name, result in results.items():
        readings = result.readings
        rises = [f"`{b.layer}` ({rise(a, b)})" for a, b in pairwise(readings) if b.error > a.error]
        how = f"{RISES} {', '.join(rises)}." if rises else FALLS
        best = min(readings, key=lambda r: r.error)
        gap = max(r.gap / r.loss for r in readings if r.gap is not None)
        reference = result.references[0]
        parts.append(
            f"""
## {name}

Prediction error (%) on {reference.n:,} test images, ± standard error; always answering the majority class has
{100 * reference.majority_error:.1f}. Every probe is within {gap:.1e} of its optimum, relative to its loss.

{markdown(side_by_side({"error": result}))}

Here: {100 * readings[0].error:.1f}% at the input, {100 * readings[1].error:.1f}% after the first addition,
{100 * readings[-1].error:.1f}% after the sixteenth; the lowest is {100 * best.error:.1f}% at `{best.layer}`.
{how}"""
        )
    return "\n".join(parts)


def rise(a: Reading, b: Reading) -> str:
    error = (a.error_se**2 + b.error_se**2) ** 0.5
    return f"{100 * (b.error - a.error):+.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    main()
