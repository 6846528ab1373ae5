"""Numbers that callers give: each is what it has to be, or refused by name."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

from thermoscope.errors import ProbeError

__all__ = ["positive_number", "whole_number"]


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """An integer of any kind, but no bool.

    Raises:
        ProbeError: if it is none, or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ProbeError(f"{name}={value!r}, but it has to be a whole number{bound}.")
    return number


def positive_number(name: str, value: Any) -> float:
    """A finite real number above zero.

    Raises:
        ProbeError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ProbeError(f"{name}={value!r}, but it has to be a finite number above 0.")
    return float(value)
