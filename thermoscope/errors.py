"""The exceptions that a user is meant to read, and other people's errors in one line."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AnalysisError",
    "HessianError",
    "LeftAloneError",
    "ProbeError",
    "ThermoscopeError",
    "first_line",
    "reason",
]


class ThermoscopeError(Exception):
    """A mistake that the user can put right; its message names the thing and the remedy.

    Attributes:
        going_on: how work that a full disk has stopped is taken up again, as the end of a sentence.
    """

    going_on: ClassVar[str] = "try again"


class ProbeError(ThermoscopeError, ValueError):
    """A mistake in how probes were used."""

    going_on = "make the same call again: it continues where it was"


class HessianError(ThermoscopeError, ValueError):
    """A mistake in how the Hessian was asked for."""

    going_on = "make the same call again: it continues where it was"


class LeftAloneError(HessianError):
    """Another process of the group has died or left."""


class AnalysisError(ThermoscopeError):
    """A mistake in a run directory, a setting, or the name of a model or data set."""

    going_on = "continue with --resume"


def first_line(error: BaseException) -> str:
    """An error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {reason(error)}"


def reason(error: BaseException) -> str:
    """The first line of what an error says; empty if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "")
