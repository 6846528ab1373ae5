"""What a run directory holds, for reading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hessian import LineSearch, Spectrum
from probes import CodeLength, ProbeResult, Reading, Reference, Selectivity
from thermoscope.errors import AnalysisError

from ..jobs.controls import Controls
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
            AnalysisError: for a line that is no JSON of a result, and for a file that cannot be read.
        """
        try:
            content = self._results.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise AnalysisError(f"cannot read {str(self._results)!r}: {error.strerror}.") from error
        *lines, _ = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                sound = isinstance(record["step"], int) and isinstance(record["kind"], str)
            except (ValueError, TypeError, KeyError, RecursionError):
                sound = False
            if not sound:
                raise AnalysisError(
                    f"line {number} of {str(self._results)!r} is damaged; delete that line to go on."
                )
            yield record

    def _of_kind(self, kind: str, make: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
        """(step, result) of the lines of a kind."""
        for record in self.records():
            if record["kind"] == kind:
                try:
                    made = make(record)
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise AnalysisError(
                        f"the {kind} of step {record['step']} in {str(self._results)!r} was edited, or is "
                        "another version's; delete that line to go on."
                    ) from error
                yield record["step"], made

    def probe_results(self) -> Iterator[tuple[int, ProbeResult]]:
        """(step, result) of every probe evaluation logged."""
        return self._of_kind("ProbeResult", _probe_result)

    def controls(self) -> dict[int, Controls]:
        """The last controls logged at each step."""
        return dict(sorted(dict(self._of_kind("Controls", _controls)).items()))

    def spectra(self) -> dict[int, Spectrum]:
        """The last spectrum logged at each step, without its vectors, which are in `spectrum_path(step)`."""
        return dict(sorted(dict(self._of_kind("Spectrum", from_summary)).items()))

    def line_searches(self) -> dict[tuple[int, str], LineSearch]:
        """The last line search logged at each step along each direction's name."""
        found = {(step, name): search for step, (name, search) in self._of_kind("LineSearch", _line_search)}
        return dict(sorted(found.items()))

    def spectrum_path(self, step: int) -> Path:
        """The file of a step's spectrum."""
        return self.path / "spectra" / f"step_{step:08d}.npz"

    def snapshots(self) -> dict[int, Path]:
        """The weights saved, by step; files of other names are not ours."""
        found = {}
        for file in (self.path / "snapshots").glob("step_*.safetensors"):
            number = file.stem.removeprefix("step_")
            if number.isascii() and number.isdecimal() and file.stem == f"step_{int(number):08d}":
                found[int(number)] = file
        return dict(sorted(found.items()))


def read_config(path: Path) -> dict[str, Any]:
    """What `config.json` of a run directory says; empty without one.

    Raises:
        AnalysisError: if the file is damaged or cannot be read.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise AnalysisError(f"cannot read {str(file)!r}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise AnalysisError(f"{str(file)!r} is damaged; start a new run directory.") from error
    if not isinstance(config, dict):
        raise AnalysisError(f"{str(file)!r} is damaged; start a new run directory.")
    return config


def _line_search(record: Mapping[str, Any]) -> tuple[str, LineSearch]:
    content = {key: value for key, value in record.items() if key not in ("step", "kind", "name")}
    content |= {key: np.array(content[key], np.float64) for key in ("alphas", "losses")}
    # An earlier version did not say how well it knew the direction: so it is not known.
    content = {"angle": None, "slope_doubt": np.nan} | content
    return str(record["name"]), LineSearch(**content)


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
