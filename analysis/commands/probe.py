"""`thermoscope probe`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermoscope.errors import AnalysisError

from .options import count, folder, option_of, positive, settings_from

if TYPE_CHECKING:
    from probes import Estimate, ProbeResult

    from ..jobs.settings import ProbeSettings

__all__ = ["add"]

_AS_TRAINED = {"layers": "probe", "exclude": "exclude", "reduce": "reduce"}  # unless told otherwise


def add(commands: Any) -> None:
    """Declare the command."""
    from ..jobs.settings import CONTROLS, ProbeSettings

    text = "fit probes to their optimum, on a checkpoint or on the snapshots of a run"
    parser = commands.add_parser(
        "probe",
        help=text,
        description="Read data through a model once, keep the features of its layers on disk, and fit a "
        "probe to each, with a certificate of how far from its optimum it can be. Without --model: at each "
        "snapshot of the run, on the layers that it was trained with. The same command goes on after an "
        "interruption.",
        epilog="examples:\n  thermoscope probe --model torchvision:resnet50 --checkpoint w.safetensors "
        "--data folder:imagenet --run runs/rn50\n  thermoscope probe --run runs/mnist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = partial(option_of, ProbeSettings)
    parser.add_argument("--run", type=folder, required=True, metavar="DIR", help="run directory")
    what = parser.add_argument_group("a trained model")
    what.add_argument("--model", help="torchvision:NAME, timm:NAME, paper:NAME or my.module:function")
    what.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="its weights: .safetensors or a state_dict"
    )
    what.add_argument("--published", action="store_true", help="fetch the weights that are published with it")
    what.add_argument(
        "--data", help="torchvision:NAME, folder:PATH, npz:PATH, sklearn:digits or my.module:function"
    )
    what.add_argument(
        "--data-dir", default="data", metavar="DIR", help="where torchvision finds its data (default: data)"
    )
    images = parser.add_argument_group("its images", "by default as its published weights want them")
    images.add_argument("--image-size", type=positive, metavar="N", help="pixels of the centre crop")
    images.add_argument(
        "--resize", type=positive, metavar="N", help="pixels of the short side before the crop"
    )
    images.add_argument("--mean", nargs="+", type=float, metavar="M", help="per channel, of values in 0..1")
    images.add_argument("--std", nargs="+", type=float, metavar="S", help="per channel")
    how = parser.add_argument_group("how to probe")
    option(
        how,
        "layers",
        "names, globs ('layer*.*', 'layer*.*.add'), input, output, or auto",
        nargs="+",
        metavar="LAYER",
    )
    option(how, "exclude", "layers to leave out", nargs="+", metavar="LAYER")
    option(how, "reduce", "auto, flatten, avg, max:2, subset:1000, cls, mean, ...", metavar="HOW")
    option(how, "layout", "where the forward shows none: BCHW, BHWC, TBC, ...", metavar="LETTERS")
    option(
        how,
        "l2",
        "strengths of the penalty, one chosen on the validation set",
        nargs="+",
        type=float,
        metavar="L2",
    )
    how.add_argument(
        "--early-stopping",
        action="store_true",
        help="stop the fit where the validation loss is least, instead of choosing a strength",
    )
    option(how, "labels", "which label set, where the data have several", metavar="NAME")
    option(
        how,
        "controls",
        f"what to hold the probes against, any of {', '.join(CONTROLS)}",
        nargs="+",
        choices=CONTROLS,
        metavar="NAME",
    )
    option(
        how,
        "examples",
        "of the training set, a third as many of the others (default: all)",
        type=count,
        metavar="N",
    )
    option(how, "dtype", "of the features on disk", choices=("float32", "float16"))
    how.add_argument("--autocast", action="store_true", help="let the model compute in bfloat16")
    how.add_argument(
        "--drop-features", dest="keep_features", action="store_false", help="keep no features on disk"
    )
    option(how, "batch-size", "examples per forward", type=positive, metavar="N")
    option(how, "workers", "processes that load data", type=count, metavar="N")
    option(how, "steps", "only these snapshots", nargs="+", type=count, metavar="STEP")
    option(how, "seed", "of random features and of the choice of examples", type=count, metavar="N")
    option(how, "device", "cpu, cuda, ...", metavar="NAME")
    picture = parser.add_argument_group("the picture of the network")
    option(picture, "palette", "of its colours", choices=("red-green", "colour-blind"))
    picture.add_argument("--diodes", action="store_true", help="draw each probe as a diode")
    parser.set_defaults(run_command=_probe, **dict.fromkeys(_AS_TRAINED))


def _probe(options: argparse.Namespace) -> int:
    from ..jobs.probe import probe_model, probe_snapshots
    from ..results.probes import by_step

    settings = _settings(options)
    if options.model is None:
        results = probe_snapshots(options.run, settings, report=_announce)
        if results:
            print("Prediction error of a linear probe on each layer, in % of the test set, by step:\n")
            print(by_step(results).to_string(float_format="{:.2f}".format))
            _print_controls(options, results)
            print(f"\nfigures: {options.run / 'figures'}/probes_over_training_*.png")
        return 0
    model, data, weights = _model_and_data(options)
    result = probe_model(options.run, model, data, settings, weights=weights, report=_announce)
    if result is not None:
        print(result)
        print(weights)
        _print_controls(options, {0: result})
        print(f"\nfigures: {options.run / 'figures'}")
    return 0


def _settings(options: argparse.Namespace) -> ProbeSettings:
    """Unless told otherwise, a run is probed on the layers and with the reduction of its training."""
    from ..jobs.settings import ProbeSettings
    from ..runs.records import read_config

    config = read_config(options.run) if options.model is None else {}
    if options.layers is not None:  # others than in training, of which none is to be left out
        config.pop("exclude", None)
    for name, in_training in _AS_TRAINED.items():
        if getattr(options, name) is None:
            setattr(options, name, config.get(in_training, getattr(ProbeSettings, name)))
    return settings_from(options, ProbeSettings)


def _announce(estimate: Estimate) -> None:
    print(
        f"features of {estimate.rows:,} rows: {estimate.bytes / 1e9:.3g} GB to write, of "
        f"{estimate.free / 1e9:.3g} GB free; about {estimate.seconds / 60:.1f} minutes",
        file=sys.stderr,
    )


def _print_controls(options: argparse.Namespace, results: Mapping[int, ProbeResult]) -> None:
    """Of the last step that has some."""
    from ..results.controls import Controls, with_controls
    from ..results.probes import by_step
    from ..runs.records import RunRecords

    if not options.controls:
        return
    measured = RunRecords(options.run).last(Controls)
    step = max(measured)
    controls = measured[step]
    print(
        "\nErrors in % (task and control, which has random labels, on the training rows); bits per label:\n"
    )
    print(with_controls(results[step], controls).to_string(float_format="{:.2f}".format))
    if controls.curve is not None:
        print("\nPrediction error in % by number of training rows:\n")
        print(by_step(controls.curve).to_string(float_format="{:.2f}".format))


def _model_and_data(options: argparse.Namespace) -> tuple[Any, Any, str]:
    """The model, the data, and where the model's weights are from."""
    from thermoscope.random_state import preserved_random_state, seed_streams

    from ..sources.data import load_data, takes_preprocessing
    from ..sources.models import load_model
    from ..sources.preprocessing import own_preprocessing
    from ..sources.weights import load_checkpoint_of, load_published

    if options.data is None:
        raise AnalysisError("--model needs --data: what it is to be probed with.")
    if options.checkpoint is not None and options.published:
        raise AnalysisError("give either --checkpoint or --published, not both.")
    given = {
        "size": options.image_size,
        "resize": options.resize or options.image_size,
        "mean": options.mean and tuple(options.mean),
        "std": options.std and tuple(options.std),
    }
    with preserved_random_state():
        seed_streams(options.seed)
        if options.checkpoint is not None:
            model = load_checkpoint_of(options.model, options.checkpoint)
            weights = f"weights of {options.checkpoint}"
        elif options.published:
            model, weights = load_published(options.model), f"published weights of {options.model}"
        else:
            model = load_model(options.model, 1000)
            weights = _unread_weights(options.model, options.seed)
        changed = {name: value for name, value in given.items() if value is not None}
        preprocessing = None
        if changed or takes_preprocessing(options.data):
            preprocessing = replace(own_preprocessing(options.model, model), **changed)
        data = load_data(
            options.data, data_dir=options.data_dir, preprocessing=preprocessing, seed=options.seed
        )
    return model, data, weights


def _unread_weights(model: str, seed: int) -> str:
    """What to say of the weights of a model that was made without a checkpoint."""
    if model.startswith(("torchvision:", "timm:")):
        return f"untrained weights, random by seed {seed} (--checkpoint or --published give trained ones)"
    return f"weights as {model} makes them (seed {seed})"
