"""The `thermoscope` command: a thin layer over the public functions."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from .errors import ThermoscopeError, reason
from .shadowing import require_own_packages

__all__ = ["main"]

_HOUSE = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # wherever it stands
    try:
        require_own_packages("probes", "hessian", "analysis")
        from analysis.commands import parser

        options = parser().parse_args([word for word in words if word != "--debug"])
        status: int = options.run_command(options)
        if _one_of_several():
            from analysis.jobs.processes import part

            part()
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
        if _one_of_several():
            from analysis.jobs.processes import leave

            leave(sentence, error)
        print(sentence, file=sys.stderr)
        return 1
    return _flush() or status


def _one_of_several() -> bool:
    """Whether `torchrun` started this process with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
    return Path(last.filename).parent == _HOUSE / "analysis" / "commands"


def _sentence(error: Exception) -> str:
    """What the user reads of an error: its own sentence if it is one of ours, else what and where it was."""
    if isinstance(error, ThermoscopeError):
        return str(error)
    why = reason(error).rstrip(".")
    what = f"{type(error).__name__}: {why}" if why else type(error).__name__
    return f"{what} ({_place(error)}; thermoscope --debug ... shows the traceback)."


def _place(error: Exception) -> str:
    """The last line of the user's own on the way to an error, or else the one that raised it."""
    packages = [_HOUSE / name for name in ("analysis", "hessian", "probes", "thermoscope")]
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
