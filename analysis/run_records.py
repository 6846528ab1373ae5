"""What a run directory holds, for reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hessian import LineSearch, Spectrum
from probes import CodeLength, ProbeResult, Reading, Reference, Selectivity

from .controls import Controls
from .errors import AnalysisError
from .spectra import from_summary

__all__ = ["RunRecords", "read_config"]

T = TypeVar("T")


class RunRecords:
    """The results and snapshots of a run directory; nothing is written. `Run` is one that writes, too.

    Args:
        path: the directory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._results = self.path / "results.jsonl"

    def records(self) -> Iterator[dict[str, Any]]:
        """All lines of `results.jsonl`, but for one at its end that is still being written.

        Raises:
            AnalysisError: for a line that is no JSON.
        """
        if self._results.exists():
            *lines, _ = self._results.read_text().split("\n")
            for number, line in enumerate(lines, start=1):
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

    def controls(self) -> dict[int, Controls]:
        """The last controls logged at each step."""
        found = {int(r["step"]): _controls(r) for r in self.records() if r["kind"] == "Controls"}
        return dict(sorted(found.items()))

    def spectra(self) -> dict[int, Spectrum]:
        """The last spectrum logged at each step, without its vectors, which are in `spectrum_path(step)`."""
        found = {int(r["step"]): from_summary(r) for r in self.records() if r["kind"] == "Spectrum"}
        return dict(sorted(found.items()))

    def line_searches(self) -> dict[tuple[int, str], LineSearch]:
        """The last line search logged at each step along each direction's name."""
        found = {}
        for record in self.records():
            if record.pop("kind") == "LineSearch":
                place = int(record.pop("step")), str(record.pop("name"))
                arrays = {key: np.array(record.pop(key), np.float64) for key in ("alphas", "losses")}
                found[place] = LineSearch(**{**record, **arrays})
        return dict(sorted(found.items()))

    def spectrum_path(self, step: int) -> Path:
        """The file of a step's spectrum."""
        return self.path / "spectra" / f"step_{step:08d}.npz"

    def snapshots(self) -> dict[int, Path]:
        """The weights saved, by step."""
        files = sorted((self.path / "snapshots").glob("step_*.safetensors"))
        return {int(file.stem.removeprefix("step_")): file for file in files}


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


def _probe_result(record: Mapping[str, Any]) -> ProbeResult:
    return ProbeResult(
        record["split"],
        tuple(Reading(**reading) for reading in record["readings"]),
        tuple(Reference(**reference) for reference in record["references"]),
        tuple(record["missing"]),
    )


def _controls(record: Mapping[str, Any]) -> Controls:
    """Of a line that has null for what was not measured."""

    def made(name: str, make: Callable[[Any], T]) -> T | None:
        return None if record[name] is None else make(record[name])

    return Controls(
        made("random_labels", lambda lines: tuple(Selectivity(**line) for line in lines)),
        made("code", lambda lines: tuple(_code_length(line) for line in lines)),
        made("neighbours", _probe_result),
        made("ridge", _probe_result),
        made("curve", lambda curve: {int(rows): _probe_result(line) for rows, line in curve.items()}),
    )


def _code_length(line: Mapping[str, Any]) -> CodeLength:
    return CodeLength(**{**line, "blocks": tuple((known, bits) for known, bits in line["blocks"])})
