"""The reference training loop: a model and data by name, probes on, everything kept in a run directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from probes import ProbeError, ProbeResult, ProbeSet
from thermoscope.errors import AnalysisError
from thermoscope.files import readable_errors
from thermoscope.random_state import random_state, restore_random_state, seed_streams

from ..runs.checkpoint import load_checkpoint, save_checkpoint
from ..runs.lock import exclusive
from ..runs.records import RunRecords, read_config
from ..runs.run import Run
from ..runs.schedule import Schedule
from ..runs.snapshots import fingerprint
from ..sources.data import load_data
from ..sources.models import find_device, load_model
from ..sources.preprocessing import Preprocessing
from ..sources.seeded_batches import SeededBatches
from .settings import OPTIMIZERS, TrainSettings
from .trainable import require_trainable, training_loss

__all__ = ["train"]

_CHECKPOINT_SECONDS = 60.0
_BEFORE_THE_FIRST_STEP = (
    *("config.json", "results.jsonl", "events.out.tfevents.*"),
    *("snapshots/step_00000000.*", "figures/probes_test_*step_00000000.png"),
)


def train(
    settings: TrainSettings, path: str | Path, *, resume: bool = False, progress: bool = True
) -> tuple[ProbeResult, ProbeResult]:
    """Train a model with probes; see what its layers know before, during and after.

    Before the first step and after the last, fresh probes are fitted to the model held fixed, with early
    stopping on the validation set, and measured on the test set. Between, the probes train along and are
    measured on the validation set.

    Args:
        settings: what to run.
        path: the run directory.
        resume: go on with the run that is there. Steps since its last checkpoint (one at every evaluation
            and snapshot, and every minute) are taken again, to the same bits if no worker processes
            draw random numbers.
        progress: show bars on a terminal.

    Returns:
        The test readings before and after.

    Raises:
        AnalysisError: for names, files and settings that do not work.
        ProbeError: likewise for layers and labels.
    """
    path = Path(path)
    with exclusive(path, "train"):
        begun = _begun(path, settings, resume)
        saved = path / "resume.pt"
        checkpoint = load_checkpoint(saved) if begun and os.path.lexists(saved) else None
        job = _Job(settings, saved, progress)
        config = {**asdict(settings), "data_fingerprint": fingerprint(job.data, settings.seed)}
        if begun and read_config(path).get("data_fingerprint") != config["data_fingerprint"]:
            raise AnalysisError(f"the data of {settings.data!r} are not those that {str(path)!r} began with.")
        if checkpoint is not None:
            job.restore(checkpoint)
        # Everything has been looked at; from here on the directory is changed.
        if not begun:
            _clear(path)
        with job.probes:
            with nullcontext() if begun else _taken_back(path):
                run = Run(path, config, resume_at=job.step if resume else None)
                if checkpoint is None:
                    job.measure_fitted(run)
                    job.save()
            job.train(run)
            if not any(x.step == job.total and x.result.split == "test" for x in run.results(ProbeResult)):
                job.measure_fitted(run)
            tests = [x.result for x in run.results(ProbeResult) if x.result.split == "test"]
            own = tests[-1].references[0].model_error
            metrics = {} if own is None else {"hparam/test_error": own}
            run.events.add_hparams(asdict(settings), metrics, job.total)
    return tests[0], tests[-1]


class _Job:
    """The model, its optimizer, data and probes, and how far they are."""

    def __init__(self, settings: TrainSettings, saved: Path, progress: bool):
        self.settings, self._saved, self._progress = settings, saved, progress
        seed_streams(settings.seed)
        self.data = load_data(
            settings.data,
            data_dir=settings.data_dir,
            preprocessing=Preprocessing(size=settings.image_size, rgb=settings.rgb),
            seed=settings.seed,
        )
        seed_streams(settings.seed)
        self.model = load_model(settings.model, self.data.num_classes).to(find_device(settings.device))
        example = require_trainable(self.model, self.data.train)
        kind, more = OPTIMIZERS[settings.optimizer]
        self.optimizer = getattr(torch.optim, kind)(self.model.parameters(), settings.lr, **more)
        layers = "auto" if settings.probe == ("auto",) else settings.probe
        self.probes = ProbeSet(
            self.model,
            layers,
            self.data.num_classes,
            exclude=settings.exclude,
            reduce=settings.reduce,
            layout=settings.layout,
            lr=settings.probe_lr,
            seed=settings.seed,
        )
        self.probes.evaluate([example], progress=False)  # refuses what cannot be probed
        self.step = 0
        self._losses: list[torch.Tensor] = []  # since the last evaluation
        self.per_epoch = len(_batches(self.data.train, settings, 0))
        self.total = self.per_epoch * settings.epochs
        self._evaluate = Schedule(settings.evaluate).steps(self.total, self.per_epoch)
        self._snapshots = Schedule(settings.snapshots).steps(self.total, self.per_epoch)

    def loader(self, split: Any, epoch: int | None = None, skip: int = 0) -> DataLoader[Any]:
        """Batches of a split: in order, or shuffled for an epoch, from the `skip`-th on."""
        settings, examples = self.settings, SeededBatches(split, self.settings.seed, epoch)
        # A generator of its own: starting a loader must not draw from the model's random stream.
        common: dict[str, Any] = {"num_workers": settings.workers, "generator": torch.Generator()}
        if epoch is None:
            return DataLoader(examples, batch_size=4 * settings.batch_size, **common)
        return DataLoader(examples, batch_sampler=_batches(split, settings, epoch)[skip:], **common)

    def measure_fitted(self, run: Run) -> None:
        """Fit fresh probes to the model held fixed and read them on test data."""
        valid, test = self.loader(self.data.valid), self.loader(self.data.test)
        epochs, bars = self.settings.fit_epochs, self._progress
        self.probes.fit(_Shuffled(self), valid, max_epochs=epochs, patience=2, progress=bars)
        if self.step == 0:
            run.snapshot(self.model, 0, epoch=0.0)
        run.log(self.probes.evaluate(test, split="test", progress=bars), self.step)

    def train(self, run: Run) -> None:
        """Take the steps that are left."""
        device, last_saved = next(self.model.parameters()).device, time.monotonic()
        disable = None if self._progress else True
        with tqdm(total=self.total, initial=self.step, unit="step", disable=disable) as bar:
            for x, y in self._remaining():
                self.model.train()
                loss = training_loss(self.model(x.to(device)), y.to(device))
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.probes.step(y)
                self.step += 1
                self._losses.append(loss.detach())
                bar.update()
                evaluates, snaps = self.step in self._evaluate, self.step in self._snapshots
                if evaluates:
                    self._measure(run, bar)
                if snaps:
                    run.snapshot(self.model, self.step, epoch=self.step / self.per_epoch, loss=loss.item())
                if evaluates or snaps or time.monotonic() - last_saved > _CHECKPOINT_SECONDS:
                    self.save()
                    last_saved = time.monotonic()

    def _measure(self, run: Run, bar: tqdm[Any]) -> None:
        mean_loss = float(torch.stack(self._losses).double().mean())
        self._losses = []
        run.log(self.probes.evaluate(self.loader(self.data.valid), progress=self._progress), self.step)
        run.log_scalars({"model/train/loss": mean_loss}, self.step)
        bar.set_postfix(loss=f"{mean_loss:.4f}")

    def _remaining(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for epoch in range(self.step // self.per_epoch, self.settings.epochs):
            yield from self.loader(self.data.train, epoch, self.step - epoch * self.per_epoch)

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "probes": self.probes.state_dict(),
            "losses": list(self._losses),
            "random": random_state(),
        }
        save_checkpoint(self._saved, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint.

        Raises:
            AnalysisError: if it is one of another run.
        """
        refusal = f"{str(self._saved)!r} is no checkpoint of this run; delete it to start this run anew."
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.probes.load_state_dict(state["probes"])
            self._losses = [torch.as_tensor(loss) for loss in state["losses"]]
            restore_random_state(state["random"])
            self.step = int(state["step"])
            fits = 0 <= self.step <= self.total
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ProbeError) as error:
            raise AnalysisError(refusal) from error
        if not fits:
            raise AnalysisError(refusal)


class _Shuffled:
    """Training batches in a new order at each pass, the same orders every time."""

    def __init__(self, job: _Job):
        self._job, self._passes = job, 0

    def __iter__(self) -> Iterator[Any]:
        self._passes += 1
        return iter(self._job.loader(self._job.data.train, -self._passes))


def _batches(split: Any, settings: TrainSettings, epoch: int) -> list[list[int]]:
    """Indices of an epoch's batches, but for a last one of a single example, which BatchNorm refuses."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(split), generator=generator)
    batches = [part.tolist() for part in order.split(settings.batch_size)]
    return batches[:-1] if len(batches[-1]) == 1 < len(batches) else batches


def _begun(path: Path, settings: TrainSettings, resume: bool) -> bool:
    """Whether the directory holds a run to go on with; it holds one run, and only `--resume` goes on with it.

    A command that failed before its first step leaves nothing that is worth keeping.
    """
    config, records = read_config(path), RunRecords(path)
    list(records.results(ProbeResult))  # refuses damaged ones
    steps = [int(record["step"]) for record in records.records()] + list(records.snapshots())
    began_here = "data_fingerprint" in config and "fit_epochs" in config
    worth = os.path.lexists(path / "resume.pt") or max(steps, default=-1) > (0 if began_here else -1)
    if not resume:
        if worth or (config and not began_here):
            raise AnalysisError(
                f"{str(path)!r} holds a run already; add --resume to go on, or choose another --run."
            )
        return False
    if not config:
        raise AnalysisError(f"there is no run in {str(path)!r} to resume; leave --resume out to start it.")
    now = json.loads(json.dumps(asdict(settings)))
    changed = [key for key, value in now.items() if config.get(key, value) != value]
    if changed:
        key = changed[0]
        raise AnalysisError(
            f"the run in {str(path)!r} was started with {key}={config[key]!r}, not {now[key]!r}; resume it "
            "with the same settings, or choose another --run."
        )
    return True


@contextmanager
def _taken_back(path: Path) -> Iterator[None]:
    """Leave nothing of a command that fails before its first step."""
    try:
        yield
    except BaseException:
        _clear(path)
        raise


def _clear(path: Path) -> None:
    """Take away what was written before the first step."""
    with readable_errors(path, AnalysisError):
        for pattern in _BEFORE_THE_FIRST_STEP:
            for file in path.glob(pattern):
                file.unlink()
        for folder in (path / "snapshots", path / "figures"):
            with suppress(OSError):  # something else stands in it, or it is not there
                folder.rmdir()
