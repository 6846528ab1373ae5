"""Inputs that nobody asked for, by area: each module lists its `CASES`; `tests/test_odd_inputs.py` runs them.

A case is a function without arguments that does what a user might do. Where the input has a meaning, the
case asserts the right answer itself and `sentence` is None; where it has none, `sentence` is a part of what
the user reads.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "Refused", "command"]


@dataclass(frozen=True)
class Case:
    """One odd input.

    Attributes:
        name: what is odd about it.
        use: does it; raises if it is refused, and asserts if the answer is wrong.
        sentence: a part of the refusal; None where the right answer is expected.
    """

    name: str
    use: Callable[[], Any]
    sentence: str | None = None


class Refused(Exception):
    """What the command printed when it failed."""


def command(*words: str) -> str:
    """Run the `thermoscope` command in this process; what it printed to stdout.

    Raises:
        Refused: with what it printed to stderr, if it did not end well.
    """
    from thermoscope.command import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as stop:  # argparse's own
            status = int(stop.code or 0)
    if status != 0:
        assert "Traceback" not in err.getvalue()
        raise Refused(err.getvalue().strip().splitlines()[-1])
    return out.getvalue()
