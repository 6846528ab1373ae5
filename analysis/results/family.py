"""The contract of a result family, and the families that are known.

A family says how results of one type are kept in a run directory: their line of `results.jsonl`, their
scalars, their figures and their table. Whoever measures something new subclasses `Family` in one file and
registers it; `Run.log`, `Run.results`, `scalars` and `frame` then take its results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from thermoscope.errors import AnalysisError

__all__ = ["Drawing", "Family", "Logged", "Occasion", "family_of", "frame", "register", "scalars"]

R = TypeVar("R")


class Logged(NamedTuple, Generic[R]):
    """A result that was logged: at which step of the training, and under which name, "" if it has none."""

    step: int
    result: R
    name: str = ""


class Drawing(NamedTuple):
    """A figure, TensorBoard's tag for it, and its file's name without step and ending."""

    tag: str
    file: str
    figure: Figure


@dataclass(frozen=True)
class Occasion(Generic[R]):
    """The logging of one result.

    Attributes:
        run: the run directory.
        step: of the training.
        name: of this among several of a kind, such as "SA 1" of line searches.
        earlier: all results of the kind that the run holds, this one the last of them.
    """

    run: Path
    step: int
    name: str
    earlier: Callable[[], Iterable[Logged[R]]]

    @property
    def title(self) -> str:
        """For figures: the run and the step."""
        return f"{self.run.name}, step {self.step:,}"


class Family(Generic[R]):
    """Results of one type, a frozen dataclass.

    Only `line` and `read` must fit each other: what JSON keeps of the first, the second takes.
    """

    kind: ClassVar[type[Any]]

    def line(self, result: R, at: Occasion[R]) -> Mapping[str, Any]:
        """What is kept in `results.jsonl`, arrays included; large ones may go to a file of their own."""
        return asdict(result)  # type: ignore[call-overload,no-any-return]

    def read(self, line: Mapping[str, Any]) -> R:
        """The result of a line, without the step and the name."""
        made: R = self.kind(**line)
        return made

    def scalars(self, result: R, name: str) -> dict[str, float]:
        """The numbers that loggers follow over the training, by tag."""
        return {}

    def drawings(self, result: R, at: Occasion[R]) -> Iterator[Drawing]:
        """The figures of a result."""
        yield from ()

    def frame(self, result: R) -> pd.DataFrame:
        """The result as a table, a row for each thing measured."""
        return pd.DataFrame([asdict(result)])  # type: ignore[call-overload]


_FAMILIES: dict[type[Any], Family[Any]] = {}


def register(family: Family[R]) -> Family[R]:
    """Let runs take results of a family; of two for one type, the last is taken.

    Raises:
        AnalysisError: for a type that is called like another, since lines are told apart by that name.
    """
    name = family.kind.__name__
    if name == "scalars" or any(name == k.__name__ and k is not family.kind for k in _FAMILIES):
        raise AnalysisError(f"there are results called {name} already; give your type another name.")
    _FAMILIES[family.kind] = family
    return family


def family_of(kind: type[R]) -> Family[R]:
    """The family of results of this type.

    Raises:
        AnalysisError: if there is none, naming those that there are.
    """
    found = _FAMILIES.get(kind)
    if found is None:
        known = ", ".join(sorted(other.__name__ for other in _FAMILIES))
        raise AnalysisError(
            f"a {kind.__name__} cannot be logged; log one of {known}, or register a family for it."
        )
    return found


def scalars(result: Any, name: str = "") -> dict[str, float]:
    """The numbers of a result by the tags that TensorBoard shows them under, for other loggers.

    Args:
        result: of any family.
        name: of a line search's direction, such as "SA 1".

    Raises:
        AnalysisError: for anything else.
    """
    return family_of(type(result)).scalars(result, name)


def frame(result: Any) -> pd.DataFrame:
    """A result of any family as a table.

    Raises:
        AnalysisError: for anything else.
    """
    return family_of(type(result)).frame(result)
