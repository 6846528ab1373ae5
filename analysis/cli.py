"""The `thermoscope` command: a thin layer over the public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hessian import HessianError
from probes import ProbeError

from .commands import demo, hessian, layers, probe, train
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

  thermoscope probe --model torchvision:resnet50 --checkpoint w.safetensors --data folder:imagenet \\
      --run runs/rn50
      what every layer of a trained network knows: probes fitted to their optimum

  thermoscope probe --run runs/resnet18
      the same at each snapshot of a run
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
    for command in (demo, train, hessian, probe, layers):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
