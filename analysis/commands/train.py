"""`thermoscope train`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from .options import count, folder, option_of, positive, settings_from
from .report import report_probes

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the command."""
    from ..jobs.settings import TrainSettings

    parser = commands.add_parser(
        "train",
        help="train a model by name with probes on its layers",
        description="Train a model with probes on its layers. Fresh probes are fitted to the model before "
        "and after; between, they train along without changing the model's training by a bit.",
        epilog="example:\n  thermoscope train --model paper:mnist_convnet --data torchvision:MNIST "
        "--data-dir data \\\n      --probe input '*' --epochs 3 --snapshots log:20 --run runs/mnist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = partial(option_of, TrainSettings)
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--model", required=True, help="torchvision:NAME, timm:NAME, paper:NAME or my.module:function"
    )
    what.add_argument(
        "--data",
        required=True,
        help="torchvision:NAME, folder:PATH, npz:PATH, sklearn:digits or my.module:function",
    )
    option(what, "data-dir", "where torchvision finds its data", metavar="DIR")
    option(what, "image-size", "resize images to this many pixels", type=positive, metavar="N")
    what.add_argument("--rgb", action="store_true", help="give grey images three channels")
    how = parser.add_argument_group("how to train")
    option(how, "epochs", "passes over the training set", type=positive, metavar="N")
    option(how, "batch-size", "examples per step", type=positive, metavar="N")
    option(how, "optimizer", "sgd, adam, adamw or rmsprop", metavar="NAME")
    option(how, "lr", "its learning rate", type=float, metavar="RATE")
    option(how, "seed", "of weights, data order and random features", type=count, metavar="N")
    option(how, "device", "cpu, cuda, ...", metavar="NAME")
    option(how, "workers", "processes that load data", type=count, metavar="N")
    probes = parser.add_argument_group("what to measure")
    option(
        probes,
        "probe",
        "layers: names, globs ('layer*.*', 'layer*.*.add'), input, output, or auto",
        nargs="+",
        metavar="LAYER",
    )
    option(probes, "exclude", "layers to leave out", nargs="+", metavar="LAYER")
    option(probes, "reduce", "auto, flatten, avg, max:2, subset:1000, cls, mean, ...", metavar="HOW")
    option(probes, "layout", "where the forward shows none: BCHW, BHWC, TBC, ...", metavar="LETTERS")
    option(probes, "probe-lr", "learning rate of the probes", type=float, metavar="RATE")
    option(probes, "fit-epochs", "passes that fit fresh probes before and after", type=positive, metavar="N")
    option(probes, "evaluate", "when to evaluate: log:20, every:100, epoch or none", metavar="WHEN")
    option(probes, "snapshots", "when to save the weights, likewise", metavar="WHEN")
    run = parser.add_argument_group("where")
    run.add_argument("--run", type=folder, required=True, metavar="DIR", help="run directory")
    run.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.set_defaults(run_command=_train)


def _train(options: argparse.Namespace) -> int:
    from ..jobs.settings import TrainSettings
    from ..jobs.train import train

    before, after = train(settings_from(options, TrainSettings), options.run, resume=options.resume)
    report_probes(options.run, before, after)
    return 0
