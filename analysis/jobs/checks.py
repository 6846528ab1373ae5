"""Whether settings are numbers that mean something, asked before anything is made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from thermoscope.errors import AnalysisError

__all__ = ["require_choice", "require_number", "require_seed", "require_steps", "require_whole"]

_SEEDS = 2**32  # NumPy takes no larger ones


def require_whole(settings: Any, *names: str, least: int = 0) -> None:
    """Refuse settings of these names that are not whole numbers from `least` on.

    Raises:
        AnalysisError: naming the setting.
    """
    for name in names:
        _require_whole(name, getattr(settings, name), least)


def require_number(settings: Any, *names: str, above: float = 0.0, most: float = math.inf) -> None:
    """Refuse settings of these names that are not finite numbers above one bound and at most the other.

    Raises:
        AnalysisError: naming the setting.
    """
    for name in names:
        value = getattr(settings, name)
        known = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
        if not (known and above < value <= most):
            limit = "" if most == math.inf else f" and at most {most:g}"
            raise AnalysisError(f"{name} must be a finite number above {above:g}{limit}, not {value!r}.")


def require_seed(settings: Any) -> None:
    """Refuse a seed that the random streams do not all take.

    Raises:
        AnalysisError: if it is not a whole number from 0 to 2^32 - 1.
    """
    _require_whole("seed", settings.seed, 0)
    if settings.seed >= _SEEDS:
        raise AnalysisError(f"seed must be below 2^32 = {_SEEDS}, not {settings.seed}.")


def require_steps(settings: Any) -> None:
    """Refuse steps that no snapshot can have.

    Raises:
        AnalysisError: naming the step.
    """
    for step in settings.steps:
        _require_whole("steps", step, 0)


def require_choice(settings: Any, name: str, choices: Iterable[str]) -> None:
    """Refuse a setting that is none of some words.

    Raises:
        AnalysisError: with the words.
    """
    value = getattr(settings, name)
    if value not in tuple(choices):
        raise AnalysisError(f"unknown {name} {value!r}; use {', '.join(choices)}.")


def _require_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise AnalysisError(f"{name} must be a whole number from {least} on, not {value!r}.")
