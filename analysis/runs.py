"""A run directory: what was run, its results, snapshots, TensorBoard events and figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors.torch
import torch
from matplotlib.figure import Figure
from torch import nn

from probes import ProbeResult, Reading, Reference

from .errors import AnalysisError
from .figures import error_by_depth
from .files import append_line, drop_partial_line, readable_errors, write_atomically
from .tensorboard import Events

__all__ = ["Run", "read_config", "versions"]


class Run:
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
        self.path = Path(path)
        with readable_errors(self.path):
            (self.path / "snapshots").mkdir(parents=True, exist_ok=True)
            (self.path / "figures").mkdir(exist_ok=True)
        self._results = self.path / "results.jsonl"
        if config is not None and not (self.path / "config.json").exists():
            self._write_json("config.json", {**config, "versions": versions()})
        with readable_errors(self._results):
            drop_partial_line(self._results)
        if resume_at is not None:
            self._forget_after(resume_at)
        with readable_errors(self.path):
            self.events = Events(self.path, None if resume_at is None else resume_at + 1)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self.events.close()

    # -- results ------------------------------------------------------------------------------------

    def log(self, result: ProbeResult, step: int) -> None:
        """Keep a result: a line of `results.jsonl`, scalars, and a figure with the split's first result."""
        append_line(self._results, json.dumps({"step": step, "kind": "ProbeResult", **asdict(result)}))
        self.events.add_probes(result, step)
        for reference in result.references:
            self._draw(result, reference.target, step)

    def _draw(self, result: ProbeResult, target: str, step: int) -> None:
        first_step, first = next((s, r) for s, r in self.probe_results() if r.split == result.split)
        curves = {"at initialisation" if first_step == 0 else f"step {first_step:,}": first}
        if step != first_step:
            curves[f"step {step:,}"] = result
        suffix = "" if len(result.references) == 1 else f"_{target}"
        figure = error_by_depth(curves, title=f"{self.path.name}: {result.split}", target=target)
        self.save_figure(figure, f"probes_{result.split}{suffix}_step_{step:08d}")
        self.events.add_figure(f"probes/{result.split}/error by depth{suffix}", figure, step)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers of the training itself, by TensorBoard tag."""
        append_line(self._results, json.dumps({"step": step, "kind": "scalars", **scalars}))
        self.events.add_scalars(scalars, step)

    def records(self) -> Iterator[dict[str, Any]]:
        """All lines of `results.jsonl`.

        Raises:
            AnalysisError: for a line that is no JSON.
        """
        if self._results.exists():
            for number, line in enumerate(self._results.read_text().splitlines(), start=1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise AnalysisError(
                        f"line {number} of {str(self._results)!r} is damaged; delete that line to go on."
                    ) from error

    def probe_results(self) -> Iterator[tuple[int, ProbeResult]]:
        """(step, result) of every probe evaluation logged."""
        for record in self.records():
            if record["kind"] == "ProbeResult":
                yield int(record["step"]), _probe_result(record)

    def _forget_after(self, step: int) -> None:
        records = list(self.records())
        kept = [json.dumps(record) + "\n" for record in records if record["step"] <= step]
        if len(kept) < len(records):
            write_atomically(self._results, "".join(kept).encode())

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
        path = self.path / "figures" / f"{name}.png"
        temporary = path.with_name(f".{name}.partial.png")
        with readable_errors(path):
            figure.savefig(temporary)
            temporary.replace(path)
        return path

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())


def read_config(path: Path) -> dict[str, Any]:
    """What `config.json` of a run directory says; empty without one.

    Raises:
        AnalysisError: if the file is damaged.
    """
    file = path / "config.json"
    try:
        return dict(json.loads(file.read_text())) if file.exists() else {}
    except ValueError as error:
        raise AnalysisError(f"{str(file)!r} is damaged; start a new run directory.") from error


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


def _probe_result(record: Mapping[str, Any]) -> ProbeResult:
    return ProbeResult(
        record["split"],
        tuple(Reading(**reading) for reading in record["readings"]),
        tuple(Reference(**reference) for reference in record["references"]),
        tuple(record["missing"]),
    )
