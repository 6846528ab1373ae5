"""Strengths of regularisation, as callers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from thermoscope.errors import ProbeError

from ..arguments import positive_number

__all__ = ["from_strong_to_weak", "require_choosable"]


def from_strong_to_weak(l2: Any, *, choosable: bool) -> list[float]:
    """One strength or several, each once, in descending order.

    Args:
        l2: a number, or numbers.
        choosable: whether there are rows to choose one of several by.

    Raises:
        ProbeError: for what is no positive number, and several to choose among by nothing.
    """
    given = list(l2) if isinstance(l2, Iterable) and not isinstance(l2, str) else [l2]
    strengths = sorted({positive_number("l2", strength) for strength in given}, reverse=True)
    if not strengths:
        raise ProbeError("l2 is empty; give a strength of regularisation, such as 1e-3, or leave it out.")
    require_choosable(len(strengths), choosable)
    return strengths


def require_choosable(strengths: int, choosable: bool) -> None:
    """Refuse several strengths to choose among by nothing."""
    if strengths > 1 and not choosable:
        raise ProbeError(
            f"choosing among {strengths} strengths of regularisation needs rows that were not fitted: "
            "give valid=..., or a single strength such as l2=1e-3."
        )
