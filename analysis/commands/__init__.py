"""The commands of `thermoscope`, one file each: `add` says what it takes, and what it runs."""

from __future__ import annotations

import argparse

from . import demo, hessian, layers, probe, train
from .command_parser import CommandParser

__all__ = ["parser"]

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


def parser() -> argparse.ArgumentParser:
    """What is to be parsed: `run_command` of the options then runs the command."""
    top = CommandParser(
        prog="thermoscope",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, train, hessian, probe, layers):
        command.add(commands)
    return top
