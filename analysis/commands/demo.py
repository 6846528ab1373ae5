"""`thermoscope demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import folder
from .report import report_probes, report_spectra

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the command."""
    text = "see what each layer of a small convnet knows of handwritten digits, and how its loss bends"
    parser = commands.add_parser("demo", help=text, description=text + " (a minute, no download)")
    parser.add_argument("--run", type=folder, metavar="DIR", help="run directory (default: runs/demo)")
    parser.set_defaults(run_command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from ..jobs.demo import demo, demo_hessian

    path = options.run or _unused(Path("runs/demo"))
    print("A small convnet learns 1,797 handwritten digits of 8x8 pixels (scikit-learn).\n", flush=True)
    before, after = demo(path)
    report_probes(path, before, after)
    print("\nHow does the loss bend? Its Hessian early, midway and at the end:\n", flush=True)
    report_spectra(path, demo_hessian(path))
    return 0


def _unused(path: Path) -> Path:
    """`runs/demo`, or `runs/demo-2` and so on."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
