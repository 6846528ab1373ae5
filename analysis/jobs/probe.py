"""Probes fitted to their optimum: on a checkpoint, and on the snapshots of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from probes import Estimate, FeatureStore, FeatureTable, FittedProbes, ProbeResult, fit_probes, with_labels
from probes.fit.splits import require_classes
from thermoscope.errors import AnalysisError

from ..results.controls import Controls
from ..runs.lock import exclusive
from ..runs.records import RunRecords
from ..runs.run import Run
from ..runs.snapshots import chosen_snapshots, keep_to_settings, training_config, training_data
from ..sources.data import DataSplits
from ..sources.models import find_device, load_model
from ..sources.own_data import known_labels
from ..sources.weights import load_weights
from .controls import measure_controls
from .probing_figures import draw_controls, draw_network, draw_training
from .processes import join_processes
from .settings import FREE_SETTINGS, ProbeSettings

__all__ = ["probe_model", "probe_snapshots"]

_DEFAULTS = ProbeSettings()
_OPTIMUM, _EARLY = "optimum", "early_stopped"  # splits of results: probes that trained along have others


def probe_model(
    path: str | Path,
    model: nn.Module,
    data: DataSplits,
    settings: ProbeSettings = _DEFAULTS,
    *,
    weights: str = "",
    progress: bool = True,
    report: Callable[[Estimate], None] | None = None,
) -> ProbeResult | None:
    """Probe a model that is held fixed; everything is kept in a run directory.

    The features of the three splits are computed once and kept under `features`. Each layer's probe is
    fitted to its optimum on the training set, its penalty chosen on the validation set, and measured on the
    test set. Under `torchrun` each process runs the model on a part of the data, and the first one fits.

    Before it computes the features of a split, `report` is told how long it will take and how much it will
    write. `weights`, if given, says in the record where the model's weights are from.

    Returns:
        The readings on the test set, with certificates; nothing but in the first process.

    Raises:
        ProbeError: if a layer cannot be probed, or if the store is of other data.
        AnalysisError: if the directory cannot be written.
    """
    job = _Job(Path(path), data, settings, progress, report)
    with exclusive(Path(path), "probe") if job.leads else nullcontext():
        probed = job.probe(model.to(find_device(settings.device)), None)
        if probed is None:
            return None
        with Run(path) as run:
            _keep(run, probed, 0, weights)
            draw_network(run, model, job.run_once, probed.result, settings.palette, settings.diodes)
    return probed.result


def probe_snapshots(
    path: str | Path,
    settings: ProbeSettings = _DEFAULTS,
    *,
    progress: bool = True,
    report: Callable[[Estimate], None] | None = None,
) -> dict[int, ProbeResult]:
    """Probe the snapshots of a run of `thermoscope train`, each fit starting from the one before.

    Snapshots that are done already are not probed again, so the same call goes on after an interruption.

    `report` is called as by `probe_model`.

    Returns:
        The readings on the test set by step; nothing but in the first process of `torchrun`.

    Raises:
        AnalysisError: for a folder that holds no such run, or results of other settings.
        ProbeError: if a layer cannot be probed.
    """
    path = Path(path)
    config = training_config(path)
    data = training_data(config)
    job = _Job(path, data, settings, progress, report)
    model = load_model(config["model"], data.num_classes).to(find_device(settings.device))
    records = RunRecords(path)
    snapshots, done = chosen_snapshots(records, settings.steps), _done(records, settings)
    waiting = {step: file for step, file in snapshots.items() if step not in done}
    if not job.leads:
        for _ in job.follow(model, waiting):
            pass
        return {}
    file = path / "features" / "settings.json"
    keep_to_settings(file, settings, begun=bool(_results(records)), free=FREE_SETTINGS)
    with exclusive(path, "probe"), Run(path) as run:
        for step, probed in job.follow(model, waiting):
            if probed is not None:
                _keep(run, probed, step)
        results = _results(run)
        draw_training(run, results)
        last = results[max(results)]
        draw_network(run, model, job.run_once, last, settings.palette, settings.diodes)
    return results


@dataclass(frozen=True)
class _Probed:
    """What is known of one model."""

    fitted: FittedProbes
    result: ProbeResult
    controls: Controls | None


class _Job:
    """The data, and what is done to one model after another."""

    def __init__(
        self,
        path: Path,
        data: DataSplits,
        settings: ProbeSettings,
        progress: bool,
        report: Callable[[Estimate], None] | None,
    ):
        _require_labels(data.train, settings.labels)
        self._path, self._settings, self._progress, self._report = path, settings, progress, report
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
        self._num_classes = None if settings.labels else data.num_classes
        if not settings.labels:  # found out now where that is quick, and not when the features are there
            labels = {split: known_labels(loader.dataset) for split, loader in self._loaders.items()}
            known = {split: found for split, found in labels.items() if found is not None}
            if "train" in known:
                require_classes(known, data.num_classes)

    def follow(self, model: nn.Module, snapshots: Mapping[int, Path]) -> Iterator[tuple[int, _Probed | None]]:
        """Probe one snapshot after another, each fit starting from the one before."""
        fitted: FittedProbes | None = None
        steps = tqdm(snapshots, unit="snapshot", disable=None if self._progress and self.leads else True)
        for step in steps:
            load_weights(model, snapshots[step])
            probed = self.probe(model, fitted)
            fitted = None if probed is None else probed.fitted
            yield step, probed

    def probe(self, model: nn.Module, start: FittedProbes | None) -> _Probed | None:
        """Probe a model as it is; None in all processes but the first."""
        settings = self._settings
        stores = {split: self._features(model, split) for split in self._loaders}
        if not self.leads:
            return None
        train, valid, test = (self._labelled(store) for store in stores.values())
        largest = max(int(table.labels.max()) for table in (train, valid, test))
        how: dict[str, Any] = {
            "l2": settings.l2 or None,
            "num_classes": self._num_classes or largest + 1,
            "device": settings.device,
            "progress": self._progress,
        }
        fitted = fit_probes(train, valid, test, early_stopping=settings.early_stopping, start=start, **how)
        controls = None
        if settings.controls:
            controls = measure_controls(settings.controls, fitted, train, valid, test, **how)
        if not settings.keep_features:
            for split in stores:
                shutil.rmtree(self._path / "features" / split)
        return _Probed(fitted, _result(fitted, settings), controls)

    def _labelled(self, store: FeatureStore) -> FeatureTable:
        """The features with the label set that is asked for."""
        name = self._settings.labels
        return with_labels(store, store.label_sets[name]) if name else store

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
            layout=settings.layout,
            dtype=settings.dtype,
            autocast=torch.bfloat16 if settings.autocast else None,
            seed=settings.seed,
            process_group=self._group,
            progress=self._progress,
            report=self._report,
        )


def _require_labels(split: Any, wanted: str) -> None:
    """Refuse a label set that the examples do not have, before anything is computed."""
    _, y = split[0]
    names = sorted(y) if isinstance(y, Mapping) else []
    if wanted not in (names or [""]):
        there = f"the label sets {', '.join(names)}; choose with --labels" if names else "a single one"
        problem = f"there is no label set {wanted!r}: " if wanted else ""
        raise AnalysisError(f"{problem}the data have {there}.")


def _some(split: Any, count: int, seed: int) -> Any:
    """`count` of the examples, in their order; all if it is 0."""
    if not 0 < count < len(split):
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return Subset(split, chosen.sort().values.tolist())


def _result(fitted: FittedProbes, settings: ProbeSettings) -> ProbeResult:
    """The readings on the test set, under the name of their label set."""
    assert fitted.test is not None
    result = replace(fitted.test, split=_EARLY if settings.early_stopping else _OPTIMUM)
    if not settings.labels:
        return result
    return replace(
        result,
        readings=tuple(replace(reading, target=settings.labels) for reading in result.readings),
        references=tuple(replace(reference, target=settings.labels) for reference in result.references),
    )


def _results(records: RunRecords) -> dict[int, ProbeResult]:
    """Of either kind: a run has only one, for its settings are kept to."""
    return {x.step: x.result for x in records.results(ProbeResult) if x.result.split in (_OPTIMUM, _EARLY)}


def _done(records: RunRecords, settings: ProbeSettings) -> set[int]:
    """Steps of which everything that is wanted is there."""
    controls = records.last(Controls)
    return {
        step
        for step in _results(records)
        if all(wanted in controls.get(step, Controls()) for wanted in settings.controls)
    }


def _keep(run: Run, probed: _Probed, step: int, weights: str = "") -> None:
    run.log(probed.result, step, weights=weights)
    if probed.controls is not None:
        run.log(probed.controls, step)
        draw_controls(run, probed.result, probed.controls, step)
