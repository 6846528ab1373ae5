"""The names that a mistyped one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest", "the_nearest"]


def nearest(
    name: str, known: Iterable[str], *, count: int = 4, cutoff: float = 0.5, otherwise: int = 8
) -> list[str]:
    """Those of the known names that look most like this one; if none does, the first of them.

    Args:
        name: as it was given.
        known: the names that exist.
        count: so many at most.
        cutoff: how much alike they must be, from 0 to 1.
        otherwise: how many of the first, if none is.
    """
    names = list(dict.fromkeys(known))
    return difflib.get_close_matches(name, names, n=count, cutoff=cutoff) or names[:otherwise]


def the_nearest(name: str, known: Iterable[str]) -> str:
    """The nearest names as the end of a sentence."""
    return f"the nearest names are {', '.join(nearest(name, known))}"
