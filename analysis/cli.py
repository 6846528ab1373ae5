"""The `thermoscope` command: a thin layer over the public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from hessian import HessianError, Spectrum
from probes import ProbeError, ProbeResult

from .errors import AnalysisError

__all__ = ["main"]

_DESCRIPTION = "See what happens inside a neural network while it trains and after."
_EPILOG = """examples:
  thermoscope demo
      train a small convnet on handwritten digits: what each layer knows, how the loss bends

  thermoscope layers --model torchvision:resnet50
      list the places where probes can be attached

  thermoscope train --model torchvision:resnet18 --data torchvision:CIFAR10 --data-dir ~/data \\
      --probe 'layer*.*' input --epochs 10 --snapshots log:20 --run runs/resnet18
      train with probes; then: tensorboard --logdir runs

  thermoscope train ... --run runs/resnet18 --resume
      go on after an interruption, with the same command

  thermoscope hessian --run runs/resnet18 --largest 20 --smallest 3
      how the loss bends at each snapshot: extreme eigenvalues, and line searches along them
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run_command(options)
    except (AnalysisError, HessianError, ProbeError) as error:
        if options.debug:
            raise
        print(f"thermoscope: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if options.debug:
            raise
        print("\nthermoscope: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thermoscope",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_hessian(commands)
    _add_layers(commands)
    return parser


# -- commands ------------------------------------------------------------------------------------------


def _add_demo(commands: Any) -> None:
    text = "see what each layer of a small convnet knows of handwritten digits, and how its loss bends"
    parser = commands.add_parser("demo", help=text, description=text + " (a minute, no download)")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/demo)")
    parser.set_defaults(run_command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo, demo_hessian

    path = options.run or _unused(Path("runs/demo"))
    print("A small convnet learns 1,797 handwritten digits of 8x8 pixels (scikit-learn).\n", flush=True)
    before, after = demo(path)
    _report(path, before, after)
    print("\nHow does the loss bend? Its Hessian early, midway and at the end:\n", flush=True)
    _report_spectra(path, demo_hessian(path))
    return 0


def _add_train(commands: Any) -> None:
    from .training import TrainSettings

    parser = commands.add_parser(
        "train",
        help="train a model by name with probes on its layers",
        description="Train a model with probes on its layers. Fresh probes are fitted to the model before "
        "and after; between, they train along without changing the model's training by a bit.",
        epilog="example:\n  thermoscope train --model analysis.models:mnist_convnet --data torchvision:MNIST "
        "--data-dir data \\\n      --probe input '*' --epochs 3 --snapshots log:20 --run runs/mnist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = partial(_option, TrainSettings)
    what = parser.add_argument_group("what to train")
    what.add_argument("--model", required=True, help="torchvision:NAME, timm:NAME or my.module:function")
    what.add_argument(
        "--data",
        required=True,
        help="torchvision:NAME, folder:PATH, npz:PATH, sklearn:digits or my.module:function",
    )
    option(what, "data-dir", "where torchvision finds its data", metavar="DIR")
    option(what, "image-size", "resize images to this many pixels", type=int, metavar="N")
    what.add_argument("--rgb", action="store_true", help="give grey images three channels")
    how = parser.add_argument_group("how to train")
    option(how, "epochs", "passes over the training set", type=_positive, metavar="N")
    option(how, "batch-size", "examples per step", type=_positive, metavar="N")
    option(how, "optimizer", "sgd, adam, adamw or rmsprop", metavar="NAME")
    option(how, "lr", "its learning rate", type=float, metavar="RATE")
    option(how, "seed", "of weights, data order and random features", type=int, metavar="N")
    option(how, "device", "cpu, cuda, ...", metavar="NAME")
    option(how, "workers", "processes that load data", type=int, metavar="N")
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
    option(probes, "probe-lr", "learning rate of the probes", type=float, metavar="RATE")
    option(probes, "fit-epochs", "passes that fit fresh probes before and after", type=_positive, metavar="N")
    option(probes, "evaluate", "when to evaluate: log:20, every:100, epoch or none", metavar="WHEN")
    option(probes, "snapshots", "when to save the weights, likewise", metavar="WHEN")
    run = parser.add_argument_group("where")
    run.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory")
    run.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.set_defaults(run_command=_train)


def _train(options: argparse.Namespace) -> int:
    from .training import TrainSettings, train

    names = {field.name for field in fields(TrainSettings)}
    chosen = {name: value for name, value in vars(options).items() if name in names}
    for name in ("probe", "exclude"):
        chosen[name] = tuple(chosen[name])
    before, after = train(TrainSettings(**chosen), options.run, resume=options.resume)
    _report(options.run, before, after)
    return 0


def _add_hessian(commands: Any) -> None:
    from .curvature import HessianSettings

    text = "extreme eigenvalues of the Hessian at the snapshots of a run"
    parser = commands.add_parser(
        "hessian",
        help=text,
        description=text + ", and line searches along the eigenvectors. The same command goes on after an "
        "interruption.",
        epilog="example:\n  thermoscope hessian --run runs/mnist --largest 20 --smallest 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = partial(_option, HessianSettings, parser)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run directory with snapshots")
    option("largest", "eigenpairs at the upper end, LA", type=_count, metavar="K")
    option("smallest", "eigenpairs at the lower end, SA", type=_count, metavar="J")
    option("tol", "largest residual of a converged pair / the spectrum's width", type=float, metavar="TOL")
    option(
        "subset",
        "share of the training set, chosen once (default: 0.05, but at least 1,000 examples)",
        type=float,
        metavar="SHARE",
    )
    option("parameters", "only these ('fc*', 'layer1.*'); all if not given", nargs="+", metavar="GLOB")
    option("line-searches", "search along this many pairs of each end", type=_count, metavar="N")
    parser.add_argument("--density", action="store_true", help="estimate the whole spectral density too")
    parser.add_argument(
        "--no-vectors", dest="vectors", action="store_false", help="keep no eigenvectors on disk"
    )
    option("steps", "only these snapshots", nargs="+", type=int, metavar="STEP")
    option("seed", "of the subset and the solver", type=int, metavar="N")
    option("device", "cpu, cuda, ...", metavar="NAME")
    parser.set_defaults(run_command=_hessian)


def _hessian(options: argparse.Namespace) -> int:
    from .curvature import HessianSettings, measure_hessian

    names = {field.name for field in fields(HessianSettings)}
    chosen = {name: value for name, value in vars(options).items() if name in names}
    for name in ("parameters", "steps"):
        chosen[name] = tuple(chosen[name])
    _report_spectra(options.run, measure_hessian(options.run, HessianSettings(**chosen)))
    return 0


def _add_layers(commands: Any) -> None:
    text = "list the places in a model where probes can be attached"
    parser = commands.add_parser("layers", help=text, description=text + ", in execution order")
    parser.add_argument("--model", required=True, help="torchvision:NAME, timm:NAME or my.module:function")
    parser.add_argument(
        "--input", default="3x224x224", metavar="CxHxW", help="size of an image (default: %(default)s)"
    )
    parser.set_defaults(run_command=_layers)


def _layers(options: argparse.Namespace) -> int:
    import torch

    from probes import hook_points

    from .sources import load_model

    shape = [int(n) for n in options.input.split("x") if n.isdigit()]
    if len(shape) != options.input.count("x") + 1:
        raise AnalysisError(f"--input {options.input!r} is no shape; write it as 3x224x224.")
    model = load_model(options.model, num_classes=10).eval()
    x = torch.zeros(2, *shape)
    try:
        points = hook_points(model, lambda m: m(x))
    except RuntimeError as error:
        raise AnalysisError(f"the model cannot take inputs of shape {options.input}: {error}") from error
    width = max(len(point.name) for point, _ in points)
    for point, features in points:
        print(f"{point.name:<{width}}  {point.type:<24} {'x'.join(map(str, features))}")
    return 0


# -- helpers -------------------------------------------------------------------------------------------


def _report(path: Path, before: ProbeResult, after: ProbeResult) -> None:
    from .tables import side_by_side

    reference = after.references[0]
    own, own_se = reference.model_error, reference.model_error_se
    print("Prediction error of a linear probe on each layer, in % of the test set (± standard error):\n")
    print(side_by_side({"before training": before, "after training": after}).to_string())
    if own is not None and own_se is not None:
        print(f"\nthe model itself: {100 * own:.2f} ± {100 * own_se:.2f}")
    print(f"always the majority class: {100 * reference.majority_error:.2f} ({reference.n:,} test examples)")
    figures = sorted((path / "figures").glob("probes_test_step_*.png"))
    print(f"\nfigure: {figures[-1]}\nmore:   tensorboard --logdir {path.parent}")


def _report_spectra(path: Path, spectra: Mapping[int, Spectrum]) -> None:
    from .runs import Run
    from .tables import curvature

    with Run(path) as run:
        table = curvature(spectra, run.line_searches())
    print("Extreme eigenvalues of the Hessian, and the best decrease of the loss along their vectors:\n")
    print(table.to_string())
    weak = sum(not pair.converged for spectrum in spectra.values() for pair in spectrum.pairs)
    if weak:
        print(f"\n{weak} eigenpairs have not converged; their residuals are in results.jsonl.")
    print(f"\nfigures: {path / 'figures'}/hessian_*.png\nmore:    tensorboard --logdir {path.parent}")


def _unused(path: Path) -> Path:
    """`runs/demo`, or `runs/demo-2` and so on."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _option(settings: type, group: Any, name: str, text: str, **kwargs: Any) -> None:
    """An option of the settings' field of that name, with its default."""
    default = {field.name: field.default for field in fields(settings)}[name.replace("-", "_")]
    shown = "" if default in (None, False, ()) else f" (default: {_shown(default)})"
    group.add_argument(f"--{name}", default=default, help=text + shown, **kwargs)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    sys.exit(main())
