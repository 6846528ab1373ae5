"""Hessian spectra at the snapshots of a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from tqdm import tqdm

from hessian import (
    Eigenpair,
    Lanczos,
    LineSearch,
    Loss,
    Spectrum,
    Team,
    compare,
    extreme_eigenpairs,
    fixed_subset,
    line_search,
    spectral_density,
)

from ..figures.curvature import best_decreases, best_steps, eigenvalues_over_training, parameter_shares
from ..results.spectrum import load_shares, spectrum_path
from ..runs.lock import exclusive
from ..runs.run import Run
from ..runs.snapshots import chosen_snapshots, keep_to_settings, training_config, training_data
from ..sources.models import find_device, load_model
from ..sources.weights import load_weights
from .processes import following, join_processes
from .settings import HessianSettings

__all__ = ["measure_hessian"]

_FRACTION, _LEAST = 0.05, 1000  # of the training set, unless that is fewer examples than these
_PERPENDICULAR = 1e-9  # |cosine| with the gradient, below which there is nothing to search along


def measure_hessian(
    path: str | Path, settings: HessianSettings = HessianSettings(), *, progress: bool = True
) -> dict[int, Spectrum]:
    """Extreme eigenpairs and line searches at the snapshots of a run of `thermoscope train`.

    Everything is kept in the run directory: results, `spectra/*.npz`, TensorBoard scalars and the figures of
    Alain, Le Roux & Manzagol. Snapshots that are done already are not computed again, so the same call goes
    on after an interruption.

    Under `torchrun`, each process takes a part of the data.

    Returns:
        The spectra by step, without vectors (which are in the files); nothing but in the first process.

    Raises:
        AnalysisError: for a folder that holds no such run, or results of other settings.
        HessianError: for a loss that has no Hessian.
        KeyboardInterrupt: after Ctrl-C, when what was found has been kept.
    """
    path = Path(path)
    team = _team(settings.device)
    config = training_config(path)
    if team is not None and team.rank > 0:
        with following(), team.lead(_Job(config, settings, progress, team).loss):
            return {}
    with exclusive(path, "hessian"), Run(path) as run:
        snapshots = chosen_snapshots(run, settings.steps)
        folder = path / "spectra"
        begun = any(folder.glob("step_*.npz"))
        keep_to_settings(folder / "settings.json", settings, begun=begun, free=("steps", "device"))
        job = _Job(config, settings, progress, team)
        done = {step for step, spectrum in run.last(Spectrum).items() if not spectrum.interrupted}
        before: Spectrum | None = None
        waiting = [step for step in snapshots if step not in done]
        with nullcontext() if team is None else team.lead(job.loss):
            for step in tqdm(waiting, unit="snapshot", disable=None if progress else True):
                load_weights(job.model, snapshots[step])
                before = job.measure(run, step, before)
        _draw(run)
        return run.last(Spectrum)


class _Job:
    """A model, and the loss that follows it from snapshot to snapshot."""

    def __init__(
        self, config: Mapping[str, Any], settings: HessianSettings, progress: bool, team: Team | None
    ):
        data = training_data(config)
        self.settings, self._progress, self._team = settings, progress, team
        self.model = load_model(config["model"], data.num_classes).to(find_device(settings.device))
        total = len(data.train)  # type: ignore[arg-type]
        fraction = settings.subset or min(1.0, max(_FRACTION, _LEAST / total))
        batches = fixed_subset(data.train, fraction, seed=settings.seed)
        self._batches = batches if team is None else _shares(batches, team)
        self._loss: Loss | None = None

    @property
    def loss(self) -> Loss:
        """Made once, and checked; it follows the model from snapshot to snapshot."""
        if self._loss is None:
            names = list(self.settings.parameters) or None
            self._loss = Loss(self.model, F.cross_entropy, self._batches, parameters=names, team=self._team)
        return self._loss

    def measure(self, run: Run, step: int, before: Spectrum | None) -> Spectrum:
        """One snapshot; its spectrum, with vectors that point downhill.

        Nothing but the overlaps depends on the spectrum of the snapshot `before`.
        """
        settings = self.settings
        hessian = self.loss.hessian(settings.mode)
        spectrum = extreme_eigenpairs(
            hessian,
            settings.largest,
            settings.smallest,
            tol=settings.tol,
            seed=settings.seed,
            solver=Lanczos(save_to=run.path / "spectra" / f"step_{step:08d}.unfinished.npz"),
            progress=self._progress,
        )
        run.log_scalars({"hessian/loss": self.loss.value(), "hessian/examples": self.loss.examples}, step)
        if not spectrum.interrupted:
            gradient = self.loss.gradient()
            spectrum = spectrum.downhill(gradient)
            for name, pair in _named(spectrum, settings.line_searches):
                if abs(gradient @ pair.vector) > _PERPENDICULAR * np.linalg.norm(gradient):
                    run.log(line_search(self.loss, pair, gradient=gradient), step, name=name)
            if settings.density:
                run.log(spectral_density(hessian, seed=settings.seed, progress=self._progress), step)
        if before is not None:
            run.log_scalars(_stayed(before, spectrum), step)
        run.log(spectrum, step, vectors=settings.vectors)  # last: it says that the step is done
        if spectrum.interrupted:
            raise KeyboardInterrupt
        return spectrum


def _stayed(before: Spectrum, now: Spectrum) -> dict[str, float]:
    """How much of the leading vectors of the snapshot before is left: |cosines| by end, and their bounds."""
    comparison = compare(before, now)
    scalars = {}
    for name, end in (("LA 1", comparison.largest), ("SA 1", comparison.smallest)):
        if end.overlaps.size:
            scalars[f"hessian/overlap/{name}"] = float(end.overlaps[0, 0])
            scalars[f"hessian/overlap at least/{name}"] = float(end.overlap_bounds[0, 0, 0])
            scalars[f"hessian/overlap at most/{name}"] = float(end.overlap_bounds[1, 0, 0])
    return scalars


def _team(device: str) -> Team | None:
    return None if join_processes(device) is None else Team()


def _shares(batches: list[Any], team: Team) -> list[Any]:
    """Every size-th example of each batch."""
    parts = [tuple(part[team.rank :: team.size] for part in batch) for batch in batches]
    return [part for part in parts if len(part[0])]


def _named(spectrum: Spectrum, count: int) -> list[tuple[str, Eigenpair]]:
    ends = (("LA", spectrum.largest), ("SA", spectrum.smallest))
    return [(f"{end} {i}", pair) for end, pairs in ends for i, pair in enumerate(pairs[:count], start=1)]


def _draw(run: Run) -> None:
    """The figures of all snapshots together."""
    spectra, name = run.last(Spectrum), run.path.name
    losses = {
        int(record["step"]): float(record["hessian/loss"])
        for record in run.records()
        if "hessian/loss" in record
    }
    searches = [(step, search) for (step, _), search in run.named(LineSearch).items()]
    last = max(spectra)
    figures = {
        "hessian_eigenvalues": eigenvalues_over_training(
            spectra, dict(sorted(losses.items())), title=f"{name}: extreme eigenvalues of the Hessian"
        ),
        "hessian_parameter_shares": parameter_shares(
            spectra[last],
            load_shares(spectrum_path(run.path, last)),
            title=f"{name}, step {last:,}: where the eigenvectors live",
        ),
    }
    if searches:
        figures["hessian_decreases"] = best_decreases(searches, title=f"{name}: best decrease of the loss")
        figures["hessian_steps"] = best_steps(searches, title=f"{name}: the best step along each eigenvector")
    for file, figure in figures.items():
        run.save_figure(figure, file)
        run.events.add_figure(file.replace("_", "/", 1), figure, last)
