"""`thermoscope hessian`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from .options import count, folder, option_of, settings_from
from .report import report_spectra

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the command."""
    from ..jobs.settings import HessianSettings

    text = "extreme eigenvalues of the Hessian at the snapshots of a run"
    parser = commands.add_parser(
        "hessian",
        help=text,
        description=text + ", and line searches along the eigenvectors. The same command goes on after an "
        "interruption.",
        epilog="example:\n  thermoscope hessian --run runs/mnist --largest 20 --smallest 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = partial(option_of, HessianSettings, parser)
    parser.add_argument(
        "--run", type=folder, required=True, metavar="DIR", help="run directory with snapshots"
    )
    option("largest", "eigenpairs at the upper end, LA", type=count, metavar="K")
    option("smallest", "eigenpairs at the lower end, SA", type=count, metavar="J")
    option("tol", "largest residual of a converged pair / the spectrum's width", type=float, metavar="TOL")
    option(
        "subset",
        "share of the training set, chosen once (default: 0.05, but at least 1,000 examples)",
        type=float,
        metavar="SHARE",
    )
    option("parameters", "only these ('fc*', 'layer1.*'); all if not given", nargs="+", metavar="GLOB")
    option("line-searches", "search along this many pairs of each end", type=count, metavar="N")
    parser.add_argument("--density", action="store_true", help="estimate the whole spectral density too")
    parser.add_argument(
        "--no-vectors", dest="vectors", action="store_false", help="keep no eigenvectors on disk"
    )
    option(
        "mode",
        "how products are computed: linearized, retained, reverse_reverse or forward_reverse "
        "(default: the first that works and fits the memory)",
        metavar="MODE",
    )
    option("steps", "only these snapshots", nargs="+", type=count, metavar="STEP")
    option("seed", "of the subset and the solver", type=count, metavar="N")
    option("device", "cpu, cuda, ...", metavar="NAME")
    parser.set_defaults(run_command=_hessian)


def _hessian(options: argparse.Namespace) -> int:
    from ..jobs.hessian import measure_hessian
    from ..jobs.settings import HessianSettings

    spectra = measure_hessian(options.run, settings_from(options, HessianSettings))
    if spectra:  # the first process of several reports them
        report_spectra(options.run, spectra)
    return 0
