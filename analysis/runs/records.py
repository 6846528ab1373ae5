"""What a run directory holds, for reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from thermoscope.errors import AnalysisError

from ..results.family import Logged, family_of

__all__ = ["RunRecords", "read_config"]

R = TypeVar("R")


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

    def results(self, kind: type[R]) -> Iterator[Logged[R]]:
        """Every result of a type that was logged, in the order of logging.

        Raises:
            AnalysisError: for a type that cannot be logged, or a line that is not as it was written.
        """
        family = family_of(kind)
        for record in self.records():
            if record["kind"] == kind.__name__:
                content = {key: value for key, value in record.items() if key not in ("step", "kind", "name")}
                try:
                    result = family.read(content)
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    raise AnalysisError(
                        f"the {kind.__name__} of step {record['step']} in {str(self._results)!r} was edited, "
                        "or is another version's; delete that line to go on."
                    ) from error
                yield Logged(record["step"], result, str(record.get("name", "")))

    def last(self, kind: type[R]) -> dict[int, R]:
        """The last result of a type at each step, by step."""
        found = {logged.step: logged.result for logged in self.results(kind)}
        return dict(sorted(found.items(), key=itemgetter(0)))

    def named(self, kind: type[R]) -> dict[tuple[int, str], R]:
        """The last result of a type at each step under each name, by step and name."""
        found = {(logged.step, logged.name): logged.result for logged in self.results(kind)}
        return dict(sorted(found.items(), key=itemgetter(0)))

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
