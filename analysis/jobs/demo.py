"""The demonstration: a small convnet on handwritten digits, what its layers know and how its loss bends."""

from __future__ import annotations

from pathlib import Path

from hessian import Spectrum
from probes import ProbeResult

from .hessian import measure_hessian
from .settings import HessianSettings, TrainSettings
from .train import train

__all__ = ["DEMO", "demo", "demo_hessian"]

DEMO = TrainSettings(
    model="paper:digits_convnet",
    data="sklearn:digits",
    probe=("input", "*"),
    exclude=("flatten",),
    epochs=15,
    lr=3e-3,
    fit_epochs=40,
    snapshots="log:8",
)


def demo(path: str | Path, *, progress: bool = True) -> tuple[ProbeResult, ProbeResult]:
    """Train with probes on scikit-learn's digits; the test readings before and after."""
    return train(DEMO, path, progress=progress)


def demo_hessian(path: str | Path, *, progress: bool = True) -> dict[int, Spectrum]:
    """Both ends of the Hessian's spectrum early, midway and at the end of the demonstration's training."""
    # Late in training the most negative eigenvalues are close together and small beside the largest: their
    # vectors are determined only by residuals a hundred times below the usual ones, at a third more products.
    settings = HessianSettings(
        largest=5, smallest=3, tol=1e-5, line_searches=1, vectors=False, steps=(5, 57, 285)
    )
    return measure_hessian(path, settings, progress=progress)
