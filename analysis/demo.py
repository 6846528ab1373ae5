"""The demonstration: a small convnet on real handwritten digits, before and after training."""

from __future__ import annotations

from pathlib import Path

from probes import ProbeResult

from .training import TrainSettings, train

__all__ = ["DEMO", "demo"]

DEMO = TrainSettings(
    model="analysis.models:digits_convnet",
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
