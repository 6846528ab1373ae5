"""A run directory: what was run, its results, snapshots, TensorBoard events and figures."""

from __future__ import annotations

import io
import json
import operator
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import nn

from hessian import Density, LineSearch, Spectrum
from probes import FittedProbes, ProbeResult
from thermoscope.errors import AnalysisError

from ..figures.curvature import density_figure, line_search_figure
from ..figures.probes import error_by_depth
from ..files import (
    append_line,
    drop_partial_files,
    drop_partial_line,
    keep_lines,
    readable_errors,
    write_atomically,
)
from ..jobs.controls import Controls
from .records import RunRecords
from .spectra import save_spectrum, summary
from .tensorboard import Events

__all__ = ["Run", "versions"]


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
        with readable_errors(self.path):
            (self.path / "snapshots").mkdir(parents=True, exist_ok=True)
            (self.path / "figures").mkdir(exist_ok=True)
        if config is not None and not (self.path / "config.json").exists():
            self._write_json("config.json", {**config, "versions": versions()})
        with readable_errors(self.path):
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

    def log(
        self,
        result: ProbeResult | Controls | Spectrum | LineSearch | Density,
        step: int,
        *,
        name: str = "",
        vectors: bool = True,
        weights: str = "",
    ) -> None:
        """Keep a result: a line of `results.jsonl`, scalars and a figure.

        Probes are drawn with the split's first result. A spectrum goes to `spectra/step_XXXXXXXX.npz` too.

        Args:
            result: what was measured.
            step: of the training.
            name: of a line search's direction, such as "SA 1".
            vectors: whether a spectrum's eigenvectors are kept.
            weights: where the probed model's weights are from; kept with the line if given.

        Raises:
            AnalysisError: for anything else than such a result or a step, or if it cannot be written.
        """
        step = _whole(step)
        if isinstance(result, ProbeResult):
            self._append(step, result, {**({"weights": weights} if weights else {}), **asdict(result)})
            self.events.add_probes(result, step)
            for reference in result.references:
                self._draw(result, reference.target, step)
        elif isinstance(result, Controls):
            self._append(step, result, asdict(result))
            self.events.add_controls(result, step)
        elif isinstance(result, Spectrum):
            save_spectrum(self.spectrum_path(step), result, vectors=vectors)
            self._append(step, result, summary(result))
            self.events.add_spectrum(result, step)
        elif isinstance(result, LineSearch):
            self._append(step, result, {"name": name, **asdict(result)})
            self.events.add_line_search(result, name, step)
            tag = name.replace(" ", "") or "direction"
            figure = line_search_figure(result, title=f"{self.path.name}, step {step:,}: {name}")
            self.save_figure(figure, f"hessian_line_search_{tag}_step_{step:08d}")
            self.events.add_figure(f"hessian/line search/{tag}", figure, step)
        elif isinstance(result, Density):
            self._append(step, result, asdict(result))
            figure = density_figure(result, title=f"{self.path.name}, step {step:,}: spectral density")
            self.save_figure(figure, f"hessian_density_step_{step:08d}")
            self.events.add_figure("hessian/density", figure, step)
        else:
            raise AnalysisError(_no_result(result))

    def _append(self, step: int, result: object, content: Mapping[str, Any]) -> None:
        line = {"step": step, "kind": type(result).__name__, **content}
        append_line(self._results, json.dumps(line, default=np.ndarray.tolist))

    def _draw(self, result: ProbeResult, target: str, step: int) -> None:
        alike = ((s, r) for s, r in self.probe_results() if r.split == result.split)
        first_step, first = next((s, r) for s, r in alike if target in {x.target for x in r.references})
        curves = {"at initialisation" if first_step == 0 else f"step {first_step:,}": first}
        if step != first_step:
            curves[f"step {step:,}"] = result
        suffix = "" if target == "y" else f"_{target}"  # the name of a single label set without one
        figure = error_by_depth(curves, title=f"{self.path.name}: {result.split}", target=target)
        self.save_figure(figure, f"probes_{result.split}{suffix}_step_{step:08d}")
        self.events.add_figure(f"probes/{result.split}/error by depth{suffix}", figure, step)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers of the training itself, by TensorBoard tag.

        Raises:
            AnalysisError: for what is no number, or if it cannot be written.
        """
        step, plain = _whole(step), {}
        for tag, value in scalars.items():
            if tag in ("step", "kind"):
                raise AnalysisError(f"{tag!r} is the name of what every line has; choose another.")
            try:
                plain[str(tag)] = value if type(value) is int else float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise AnalysisError(f"{tag!r} is a {type(value).__name__}; log numbers.") from error
        append_line(self._results, json.dumps({"step": step, "kind": "scalars", **plain}))
        self.events.add_scalars(plain, step)

    def _forget_after(self, step: int) -> None:
        list(self.records())  # refuse damaged ones before any is dropped
        keep_lines(self._results, lambda line: json.loads(line)["step"] <= step)

    # -- files --------------------------------------------------------------------------------------

    def snapshot(self, model: nn.Module, step: int, **notes: float) -> Path:
        """Save the model's weights as `snapshots/step_00000050.safetensors`, with a JSON of the notes."""
        path = self.path / "snapshots" / f"step_{step:08d}.safetensors"
        weights = model.state_dict().items()
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
        write_atomically(path, safetensors.torch.save(state))
        self._write_json(f"snapshots/{path.stem}.json", {"step": step, **notes})
        return path

    def save_figure(self, figure: Figure, name: str) -> Path:
        """Save as `figures/NAME.png`."""
        path = self.path / "figures" / f"{name.replace('/', '-')}.png"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(path, buffer.getvalue())
        return path

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def _whole(step: Any) -> int:
    try:
        return operator.index(step)
    except TypeError as error:
        raise AnalysisError(f"step must be a whole number, not {step!r}.") from error


def _no_result(thing: object) -> str:
    kinds = ", ".join(kind.__name__ for kind in (ProbeResult, Controls, Spectrum, LineSearch, Density))
    if isinstance(thing, FittedProbes):
        return "FittedProbes hold several results; log one of them, as in run.log(fitted.test, step)."
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} is no result; log numbers by name with run.log_scalars."
    return f"a {type(thing).__name__} cannot be logged; log a {kinds}."


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import timm
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
