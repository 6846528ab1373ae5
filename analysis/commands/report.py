"""What commands print of their results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hessian import Spectrum
    from probes import ProbeResult

__all__ = ["report_probes", "report_spectra"]


def report_probes(path: Path, before: ProbeResult, after: ProbeResult) -> None:
    """Error by layer before and after training."""
    from ..results.probes import side_by_side

    reference = after.references[0]
    own, (low, high) = reference.model_error, reference.model_interval
    print("Prediction error of a linear probe on each layer, in % of the test set (and its 95% interval):\n")
    print(side_by_side({"before training": before, "after training": after}).to_string())
    if own is not None:
        print(f"\nthe model itself: {100 * own:.2f} ({100 * low:.2f} to {100 * high:.2f})")
    print(f"always the majority class: {100 * reference.majority_error:.2f} ({reference.n:,} test examples)")
    figures = sorted((path / "figures").glob("probes_test_step_*.png"))
    print(f"\nfigure: {figures[-1]}\nmore:   tensorboard --logdir {path.parent}")


def report_spectra(path: Path, spectra: Mapping[int, Spectrum]) -> None:
    """Extreme eigenvalues by step."""
    from hessian import LineSearch

    from ..results.line_search import curvature
    from ..runs.records import RunRecords

    searches = RunRecords(path).named(LineSearch)
    table = curvature(spectra, searches)
    print("Extreme eigenvalues of the Hessian, and the best decrease of the loss along their vectors:\n")
    print(table.to_string())
    weak = sum(not pair.converged for spectrum in spectra.values() for pair in spectrum.pairs)
    if weak:
        print(f"\n{weak} eigenpairs have not converged; their residuals are in results.jsonl.")
    if not all(search.determined for search in searches.values()):
        print("\nnot determined: the eigenvector is not known well enough; a smaller --tol determines it.")
    print(f"\nfigures: {path / 'figures'}/hessian_*.png\nmore:    tensorboard --logdir {path.parent}")
