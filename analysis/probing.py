"""Probes fitted to their optimum: on a checkpoint, and on the snapshots of a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from probes import FeatureStore, FittedProbes, ProbeResult, fit_probes

from .graph import model_graph
from .graph_figure import graph_figure, save_graph_figure
from .processes import join_processes
from .runs import Run
from .snapshots import chosen_snapshots, keep_to_settings, training_config, training_data
from .sources import DataSplits, find_device, load_model
from .training_figures import error_curves, error_heat_map
from .weights import load_weights

__all__ = ["ProbeSettings", "probe_model", "probe_snapshots"]

_SPLIT = "optimum"  # of these results: those of probes that trained along have other names


@dataclass(frozen=True)
class ProbeSettings:
    """How layers are probed offline.

    Attributes:
        layers: patterns as in `ProbeSet`.
        exclude: patterns of layers to leave out.
        reduce: reduction of the features, as text.
        l2: strengths of the penalty, one chosen on the validation set; `fit_probes` has a grid by default.
        examples: of the training set, chosen once, and a third as many of the other two; all if 0.
        dtype: of the features on disk, float32 or float16.
        autocast: let the model compute in bfloat16 where that suits an operation.
        keep_features: whether the features stay on disk, so that the same call takes seconds.
        batch_size: examples per forward.
        workers: processes that load data.
        seed: of random features and of the choice of examples.
        device: cpu, cuda, ...
        steps: snapshots to look at; all if empty.
    """

    layers: tuple[str, ...] = ("auto",)
    exclude: tuple[str, ...] = ()
    reduce: str = "auto"
    l2: tuple[float, ...] = ()
    examples: int = 0
    dtype: str = "float32"
    autocast: bool = False
    keep_features: bool = True
    batch_size: int = 64
    workers: int = 0
    seed: int = 0
    device: str = "cpu"
    steps: tuple[int, ...] = ()


def probe_model(
    path: str | Path,
    model: nn.Module,
    data: DataSplits,
    settings: ProbeSettings = ProbeSettings(),
    *,
    progress: bool = True,
) -> ProbeResult | None:
    """Probe a model that is held fixed; everything is kept in a run directory.

    The features of the three splits are computed once and kept under `features`. Each layer's probe is
    fitted to its optimum on the training set, its penalty chosen on the validation set, and measured on the
    test set. Under `torchrun` each process runs the model on a part of the data, and the first one fits.

    Returns:
        The readings on the test set, with certificates; nothing but in the first process.

    Raises:
        ProbeError: if a layer cannot be probed, or if the store is of other data.
        AnalysisError: if the directory cannot be written.
    """
    job = _Job(Path(path), data, settings, progress)
    fitted = job.fit(model.to(find_device(settings.device)), None)
    if fitted is None:
        return None
    with Run(path) as run:
        result = _result(fitted)
        run.log(result, 0)
        _draw_network(run, model, job, result)
    return result


def probe_snapshots(
    path: str | Path, settings: ProbeSettings = ProbeSettings(), *, progress: bool = True
) -> dict[int, ProbeResult]:
    """Probe the snapshots of a run of `thermoscope train`, each fit starting from the one before.

    Snapshots that are done already are not probed again, so the same call goes on after an interruption.

    Returns:
        The readings on the test set by step; nothing but in the first process of `torchrun`.

    Raises:
        AnalysisError: for a folder that holds no such run, or results of other settings.
        ProbeError: if a layer cannot be probed.
    """
    path = Path(path)
    config = training_config(path)
    data = training_data(config)
    job = _Job(path, data, settings, progress)
    model = load_model(config["model"], data.num_classes).to(find_device(settings.device))
    with Run(path) as run:
        done = _done(run)
        file = path / "features" / "settings.json"
        if job.leads:
            keep_to_settings(
                file,
                settings,
                begun=bool(done),
                free=("steps", "device", "workers", "batch_size", "keep_features"),
            )
        fitted: FittedProbes | None = None
        snapshots = chosen_snapshots(run, settings.steps)
        waiting = [step for step in snapshots if step not in done]
        for step in tqdm(waiting, unit="snapshot", disable=None if progress else True):
            load_weights(model, snapshots[step])
            fitted = job.fit(model, fitted)
            if fitted is not None:
                run.log(_result(fitted), step)
        results = _done(run)
        if job.leads:
            _draw_training(run, results)
            _draw_network(run, model, job, results[max(results)])
    return results if job.leads else {}


class _Job:
    """The data, and what is done to one model after another."""

    def __init__(self, path: Path, data: DataSplits, settings: ProbeSettings, progress: bool):
        self._path, self._settings, self._progress = path, settings, progress
        self._group = join_processes(settings.device)
        self.leads = self._group is None or dist.get_rank() == 0
        count = settings.examples
        counts = {"train": count, "valid": -(-count // 3), "test": -(-count // 3)}
        self._loaders = {
            split: DataLoader(
                _some(getattr(data, split), n, settings.seed),
                settings.batch_size,
                num_workers=settings.workers,
            )
            for split, n in counts.items()
        }
        self._num_classes = data.num_classes

    def fit(self, model: nn.Module, start: FittedProbes | None) -> FittedProbes | None:
        """The fitted probes; None in all processes but the first."""
        settings = self._settings
        stores = {split: self._features(model, split) for split in self._loaders}
        if not self.leads:
            return None
        fitted = fit_probes(
            stores["train"],
            stores["valid"],
            stores["test"],
            l2=settings.l2 or None,
            num_classes=self._num_classes,
            start=start,
            device=settings.device,
            progress=self._progress,
        )
        if not settings.keep_features:
            for split in stores:
                shutil.rmtree(self._path / "features" / split)
        return fitted

    def run_once(self, model: nn.Module) -> Any:
        """One forward on two test examples."""
        x, _ = next(iter(self._loaders["test"]))
        return model(x[:2].to(next(model.parameters()).device))

    def _features(self, model: nn.Module, split: str) -> FeatureStore:
        settings = self._settings
        return FeatureStore.extract(
            model,
            self._loaders[split],
            self._path / "features" / split,
            layers=settings.layers,
            exclude=settings.exclude,
            reduce=settings.reduce,
            dtype=settings.dtype,
            autocast=torch.bfloat16 if settings.autocast else None,
            seed=settings.seed,
            process_group=self._group,
            progress=self._progress,
        )


def _some(split: Any, count: int, seed: int) -> Any:
    """`count` of the examples, in their order; all if it is 0."""
    if not 0 < count < len(split):
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return Subset(split, chosen.sort().values.tolist())


def _result(fitted: FittedProbes) -> ProbeResult:
    assert fitted.test is not None
    return replace(fitted.test, split=_SPLIT)


def _done(run: Run) -> dict[int, ProbeResult]:
    return {step: result for step, result in run.probe_results() if result.split == _SPLIT}


def _draw_training(run: Run, results: Mapping[int, ProbeResult]) -> None:
    title = f"{run.path.name}: probes at their optimum"
    last = max(results)
    figures = {"heat_map": error_heat_map(results, title=title), "curves": error_curves(results, title=title)}
    for name, figure in figures.items():
        run.save_figure(figure, f"probes_over_training_{name}")
        run.events.add_figure(f"probes/{_SPLIT}/over training/{name}", figure, last)


def _draw_network(run: Run, model: nn.Module, job: _Job, result: ProbeResult) -> None:
    graph = model_graph(model, job.run_once, [reading.layer for reading in result.readings])
    figure = graph_figure(graph, result, title=f"{run.path.name}: prediction error of a probe on each layer")
    for kind in ("png", "svg"):
        save_graph_figure(figure, run.path / "figures" / f"probes_network.{kind}")
