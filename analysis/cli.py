"""The `thermoscope` command: a thin layer over the public functions."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .command_parser import CommandParser
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # wherever it stands
    try:
        options = _parser().parse_args([word for word in words if word != "--debug"])
        status: int = options.run_command(options)
    except KeyboardInterrupt:
        if debug:
            raise
        print("\nthermoscope: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except SystemExit:  # after --help, or a mistyped word
        _flush()
        raise
    except Exception as error:
        if isinstance(error, OSError) and _came_from_print(error):
            return _not_printed(error)
        if debug:
            raise
        sentence = f"thermoscope: {_sentence(error)}"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from .processes import leave

            leave(sentence, error)
        print(sentence, file=sys.stderr)
        return 1
    return _flush() or status


def _flush() -> int:
    """Print what is left; the exit status."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _not_printed(error)
    return 0


def _not_printed(error: OSError) -> int:
    """Nobody reads the output, or there is no room for it: print no more of it; the exit status."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
    if isinstance(error, BrokenPipeError):  # thermoscope layers ... | head: the reader has what it wants
        return 0
    print(f"thermoscope: cannot print the results: {error.strerror}; they are kept.", file=sys.stderr)
    return 1


def _came_from_print(error: OSError) -> bool:
    """Commands touch no files themselves, but they print."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).parent == Path(__file__).parent / "commands"


def _parser() -> argparse.ArgumentParser:
    from .commands import demo, hessian, layers, probe, train

    parser = CommandParser(
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


def _sentence(error: Exception) -> str:
    """What the user reads of an error: its own sentence if it is one of ours, else what and where it was."""
    from hessian import HessianError
    from probes import ProbeError

    if isinstance(error, (AnalysisError, HessianError, ProbeError)):
        return str(error)
    reason = next(iter(str(error).splitlines()), "").rstrip(".")
    what = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{what} ({_place(error)}; thermoscope --debug ... shows the traceback)."


def _place(error: Exception) -> str:
    """The last line of the user's own on the way to an error, or else the one that raised it."""
    house = Path(__file__).parents[1]
    packages = [house / name for name in ("analysis", "hessian", "probes")]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(Path(f.filename).is_relative_to(package) for package in packages)]
    theirs = [f for f in frames if f not in ours and not _is_installed(f.filename)]
    frame = (theirs or frames)[-1]
    owner = "unforeseen by thermoscope, in" if frame in ours else "in"
    return f"{owner} {frame.filename}, line {frame.lineno}, {frame.name}"


def _is_installed(filename: str) -> bool:
    """Whether a file belongs to Python or to an installed package, not to the user."""
    return filename.startswith("<") or any(
        Path(filename).is_relative_to(place) for place in {os.path.dirname(os.__file__), sys.prefix}
    )


if __name__ == "__main__":
    sys.exit(main())
