"""A run directory: what was run, its results, snapshots, TensorBoard events and figures."""

from __future__ import annotations

import io
import json
import operator
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import nn

import thermoscope
from probes import FittedProbes
from thermoscope.errors import AnalysisError
from thermoscope.files import (
    append_line,
    drop_partial_files,
    drop_partial_line,
    keep_lines,
    readable_errors,
    write_atomically,
)

from ..results import Family, Occasion, family_of
from .records import RunRecords
from .tensorboard import Events

__all__ = ["Run", "versions"]

_OF_EVERY_LINE = {"step", "kind", "name"}


class Run(RunRecords):
    """One run's directory, made if it is not there.

        run = Run("runs/mine")
        run.log(result, step=step)      # results.jsonl, TensorBoard scalars, a figure

    Everything in it is whole or absent, whenever the process is killed. Opening a directory again adds
    to it.

    Args:
        path: the directory.
        config: what is run, written to `config.json` if that is not there yet.
        resume_at: forget results of later steps, which are about to be computed again.

    Raises:
        AnalysisError: if the directory cannot be written.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, Any] | None = None, *, resume_at: int | None = None
    ):
        super().__init__(path)
        with readable_errors(self.path, AnalysisError):
            (self.path / "snapshots").mkdir(parents=True, exist_ok=True)
            (self.path / "figures").mkdir(exist_ok=True)
        if config is not None and not (self.path / "config.json").exists():
            self._write_json("config.json", {**config, "versions": versions()})
        with readable_errors(self.path, AnalysisError):
            drop_partial_files(self.path)
            drop_partial_line(self._results)
        if resume_at is not None:
            self._forget_after(resume_at)
        self.events = Events(self.path, None if resume_at is None else resume_at + 1)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is left to write: each result is on disk when `log` returns."""

    # -- results ------------------------------------------------------------------------------------

    def log(self, result: Any, step: int, *, name: str = "", **options: Any) -> None:
        """Keep a result: a line of `results.jsonl`, its scalars, its figures, and what else its family keeps.

        Args:
            result: what was measured, of a registered family: a `ProbeResult`, `Controls`, `Spectrum` (which
                goes to `spectra/step_XXXXXXXX.npz` too), `LineSearch` or `Density`.
            step: of the training.
            name: of one among several of a kind at a step, such as "SA 1" of line searches.
            options: of the family: `vectors=False` keeps no eigenvectors of a `Spectrum`; `weights=` says
                where the weights of the model that was probed are from.

        Raises:
            AnalysisError: for anything else than such a result or a step, or if it cannot be written.
        """
        step = _whole(step)
        family = _family_of(result)
        kind = type(result)
        at: Occasion[Any] = Occasion(self.path, step, name, lambda: self.results(kind))
        content = family.line(result, at, **options)
        for taken in _OF_EVERY_LINE & set(content):
            raise AnalysisError(
                f"a {kind.__name__} has a field {taken!r}, which is the name of what every line has; "
                "rename it, or let its family's line call it otherwise."
            )
        line = {"step": step, "kind": kind.__name__, **({"name": name} if name else {}), **content}
        append_line(self._results, json.dumps(line, default=np.ndarray.tolist), AnalysisError)
        self.events.add_scalars(family.scalars(result, name), step)
        for tag, file, figure in family.drawings(result, at):
            self.save_figure(figure, f"{file}_step_{step:08d}")
            self.events.add_figure(tag, figure, step)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers of the training itself, by TensorBoard tag.

        Raises:
            AnalysisError: for what is no number, or if it cannot be written.
        """
        step, plain = _whole(step), {}
        for tag, value in scalars.items():
            if tag in _OF_EVERY_LINE - {"name"}:
                raise AnalysisError(f"{tag!r} is the name of what every line has; choose another.")
            try:
                plain[str(tag)] = value if type(value) is int else float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise AnalysisError(f"{tag!r} is a {type(value).__name__}; log numbers.") from error
        append_line(self._results, json.dumps({"step": step, "kind": "scalars", **plain}), AnalysisError)
        self.events.add_scalars(plain, step)

    def _forget_after(self, step: int) -> None:
        list(self.records())  # refuse damaged ones before any is dropped
        keep_lines(self._results, lambda line: json.loads(line)["step"] <= step, AnalysisError)

    # -- files --------------------------------------------------------------------------------------

    def snapshot(self, model: nn.Module, step: int, **notes: float) -> Path:
        """Save the model's weights as `snapshots/step_00000050.safetensors`, with a JSON of the notes."""
        path = self.path / "snapshots" / f"step_{step:08d}.safetensors"
        weights = model.state_dict().items()
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
        write_atomically(path, safetensors.torch.save(state), AnalysisError)
        self._write_json(f"snapshots/{path.stem}.json", {"step": step, **notes})
        return path

    def save_figure(self, figure: Figure, name: str) -> Path:
        """Save as `figures/NAME.png`."""
        path = self.path / "figures" / f"{name.replace('/', '-')}.png"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(path, buffer.getbuffer(), AnalysisError)
        return path

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode(), AnalysisError)


def _whole(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError as error:
        raise AnalysisError(f"step must be a whole number, not {step!r}.") from error


def _family_of(result: object) -> Family[Any]:
    if isinstance(result, FittedProbes):
        raise AnalysisError(
            "FittedProbes hold several results; log one of them, as in run.log(fitted.test, step)."
        )
    if isinstance(result, Mapping):
        raise AnalysisError(
            f"a {type(result).__name__} is no result; log numbers by name with run.log_scalars."
        )
    return family_of(type(result))


def versions() -> dict[str, str]:
    """The versions that a result may depend on, of what is installed."""
    found = {
        "python": platform.python_version(),
        "thermoscope": thermoscope.__version__,
        "torch": torch.__version__,
    }
    for name in ("torchvision", "timm"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
