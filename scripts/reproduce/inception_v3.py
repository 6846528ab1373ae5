"""Probes on Inception v3 (Alain & Bengio 2016, section 4.2): trained on ImageNet, and while it trains.

    python scripts/reproduce/inception_v3.py --cifar10 cifar10.npz --checkpoint inception_v3.safetensors

First the ImageNet-trained trunk, held fixed, on CIFAR-10: what is known at each of the paper's points, read
through 1,000 random features. Then the whole network with its auxiliary head learns CIFAR-10 from nothing,
at 299 x 299 pixels, which its auxiliary head needs; at four moments 17 probes of 1,000 random features each,
and the picture of the network. Killed and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import markdown, shuffled, write
from matplotlib.figure import Figure
from torchvision.models import Inception3
from tqdm import tqdm

from analysis import AnalysisError, DataSplits, Run, error_by_depth, load_data
from analysis.figures.network.figure import graph_over_training
from analysis.figures.network.graph import model_graph
from analysis.jobs.probe import probe_model
from analysis.jobs.settings import ProbeSettings
from analysis.results.probes import by_step, side_by_side
from analysis.sources.paper_models import inception_v3_trunk
from analysis.sources.preprocessing import Preprocessing, own_preprocessing
from analysis.sources.weights import load_weights
from probes import ProbeResult

CONVOLUTIONS = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
LAYERS = (*CONVOLUTIONS, "Mixed_*")
BATCH = 16
PAPER = """\
The paper saw: early in training the probes on the auxiliary head and on the layers before it are better than
those near the end; the auxiliary head leads, and the main head overtakes it as training goes on."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", type=Path, required=True, help="CIFAR-10 as .npz")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="weights of the ImageNet-trained trunk"
    )
    parser.add_argument(
        "--run", type=Path, default=Path("runs/inception_v3"), help="run directories go below"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=2000, help="images that probes are fitted to")
    parser.add_argument("--steps", type=int, nargs=4, default=(0, 20, 50, 100), help="the four moments")
    parser.add_argument("--quick", action="store_true", help="few images and steps: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.examples, options.steps = 100, (0, 1, 2, 3)
    settings = ProbeSettings(
        layers=LAYERS, reduce="subset:1000", batch_size=32, examples=options.examples,
        keep_features=False,
    )  # fmt: skip
    trained = trunk(options, settings)
    print(trained, flush=True)
    learning, figure = whole(options, settings)
    figures = {
        "": error_by_depth(
            {"trained on ImageNet": trained, "after the last step here": learning[max(learning)]},
            title="Linear probes on Inception v3 (CIFAR-10, test set)",
        ),
        "_training": figure,
    }
    command = "python scripts/reproduce/inception_v3.py" + " --quick" * options.quick
    write(options, "inception_v3", figures, report(trained, learning), command)


# -- the trained trunk ---------------------------------------------------------------------------------


def trunk(options: argparse.Namespace, settings: ProbeSettings) -> ProbeResult:
    model = inception_v3_trunk()
    try:
        load_weights(model, options.checkpoint)
    except AnalysisError as error:
        raise SystemExit(str(error)) from None
    data = cifar10(options, own_preprocessing("", model))
    result = probe_model(options.run / "imagenet", model, data, settings)
    assert result is not None
    return result


def cifar10(options: argparse.Namespace, preprocessing: Preprocessing) -> DataSplits:
    try:
        return load_data(f"npz:{options.cifar10}", preprocessing=preprocessing, seed=options.seed)
    except AnalysisError as error:
        raise SystemExit(str(error)) from None


# -- a training run ------------------------------------------------------------------------------------


class Whole(Inception3):
    """With an auxiliary head that runs in eval mode too, so that a probe can read it from a fixed network."""

    def __init__(self) -> None:
        super().__init__(num_classes=10, transform_input=False, init_weights=True)

    def train(self, mode: bool = True) -> Whole:
        super().train(mode)
        self.training = True  # of this module alone, where it means: run the head
        return self


def whole(options: argparse.Namespace, settings: ProbeSettings) -> tuple[dict[int, ProbeResult], Figure]:
    data = cifar10(options, Preprocessing(size=299, mean=(0.5,) * 3, std=(0.5,) * 3))
    path = options.run / "training"
    train(path, data.train, options)
    settings = replace(settings, layers=(*LAYERS, "AuxLogits"), examples=options.examples // 3)
    results, model = {}, Whole()
    with Run(path) as run:
        for step, weights in run.snapshots().items():
            load_weights(model, weights)
            result = probe_model(options.run / f"step_{step}", model, data, settings)
            assert result is not None
            run.log(result, step)
            results[step] = result
    x = torch.zeros(2, 3, 299, 299)
    graph = model_graph(model, lambda m: m(x), [r.layer for r in result.readings])
    return results, graph_over_training(graph, {f"step {step:,}": result for step, result in results.items()})


def train(path: Path, split: Any, options: argparse.Namespace) -> None:
    """Snapshots of a training run, unless they are there."""
    with Run(path) as run:
        if set(options.steps) <= set(run.snapshots()):
            return
        torch.manual_seed(options.seed)
        model, last = Whole(), max(options.steps)
        optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, eps=0.1, momentum=0.9)
        batches = iter(shuffled(split, BATCH, options.seed))
        run.snapshot(model, 0)
        for step in tqdm(range(1, last + 1), unit="step", disable=None):
            x, y = next(batches)
            main_head, auxiliary_head = model(x)
            loss = F.cross_entropy(main_head, y) + 0.3 * F.cross_entropy(auxiliary_head, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in options.steps:
                run.snapshot(model, step, loss=loss.item())


# -- what was seen -------------------------------------------------------------------------------------


def report(trained: ProbeResult, learning: dict[int, ProbeResult]) -> str:
    leads = [
        f"at step {step:,}, {100 * r['AuxLogits'].error:.1f}% on the auxiliary head and "
        f"{100 * r['Mixed_7c'].error:.1f}% (± {100 * r['Mixed_7c'].error_se:.1f}) on the last block"
        for step, r in learning.items()
    ]
    lowest = min(trained.readings, key=lambda r: r.error)
    return f"""\
# Inception v3: what each block knows

## Trained on ImageNet, probed on CIFAR-10

![error by depth](inception_v3.png)

Prediction error (%) on {trained.references[0].n:,} test images, ± standard error, of probes on 1,000 random
features of each layer:

{markdown(side_by_side({"error": trained}))}

The lowest is {100 * lowest.error:.1f}%, at `{lowest.layer}`.

## While it learns CIFAR-10

![the network at four moments](inception_v3_training.png)

Prediction error (%) by training step ({BATCH} images each), on {learning[0].references[0].n:,} test images:

{markdown(by_step(learning).map("{:.1f}".format))}

{PAPER}

Here: {"; ".join(leads)}. The network has then
seen {max(learning) * BATCH:,} images; `--steps` trains it for longer.
"""


if __name__ == "__main__":
    main()
