"""Reductions as they are asked for: as objects, as text, or several of either."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from thermoscope.errors import ProbeError

from .auto import Auto
from .contract import Reduction
from .flatten import Flatten
from .pool import Pool
from .positions import Positions
from .project import Project
from .subset import Subset
from .token import Token

__all__ = ["Reduce", "chain_of", "parse_reduction"]

Reduce: TypeAlias = "Reduction | Sequence[Reduction] | str"

# Those that can be written as text: a new one of the package's own is its file and its name here.
_MEMBERS: tuple[type[Reduction], ...] = (Auto, Flatten, Pool, Token, Subset, Project, Positions)
_FORMS = {re.split(r"\W", form)[0]: (member, form) for member in _MEMBERS for form in member.forms}


def chain_of(reduce: Reduce) -> tuple[Reduction, ...]:
    """A reduction, its text, or several of them, as several.

    Raises:
        ProbeError: for what is not a reduction, and for a user's own that cannot be told from another by its
            text.
    """
    if isinstance(reduce, str):
        return parse_reduction(reduce)
    given: tuple[Any, ...] = tuple(reduce) if isinstance(reduce, (tuple, list)) else (reduce,)
    if not given or not all(isinstance(spec, Reduction) for spec in given):
        raise ProbeError(
            f"reduce={reduce!r} is not a reduction; use its text, such as 'auto', 'avg:2' or 'subset:1000', "
            "an object such as Pool('avg', 2), or these by layer."
        )
    for spec in given:
        _require_own_text(spec)
    return given


def parse_reduction(text: str) -> tuple[Reduction, ...]:
    """Read `"auto"`, `"auto:512"`, `"flatten"`, `"avg"`, `"max:4x6"`, `"cls"`, `"subset:1000"`, or a chain.

    Raises:
        ProbeError: for an unknown word, or a number that is not one.
    """
    return tuple(_parse_one(part.strip()) for part in text.split(","))


def _parse_one(text: str) -> Reduction:
    word, colon, number = text.partition(":")
    member, form = _FORMS.get(word, (None, ""))
    if member is None or (colon and ":" not in form):
        *others, last = (form for _, form in _FORMS.values())
        raise ProbeError(
            f"unknown reduction {text!r}; use {', '.join(others)} or {last}, or several separated by commas."
        )
    sides = (number.split("x") if "grid" in form else [number]) if colon else []
    if not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise ProbeError(f"the reduction {text!r} needs a positive whole number after its colon.")
    return member.from_text(word, tuple(map(int, sides)))


def _require_own_text(spec: Reduction) -> None:
    """Refuse a user's own reduction that is recorded like another one."""
    kind = type(spec)
    if kind in _MEMBERS:
        return
    if "__dataclass_params__" not in vars(kind):
        raise ProbeError(
            f"the reduction {kind.__name__} is not a dataclass, so its text does not say its settings; "
            "decorate it with @dataclass(frozen=True)."
        )
    words = [part.strip().partition(":")[0] for part in str(spec).split(",")]
    if all(word in _FORMS for word in words):
        raise ProbeError(
            f"the reduction {kind.__name__} has the text {str(spec)!r}, which means another one; give it a "
            "text of its own in __str__."
        )
