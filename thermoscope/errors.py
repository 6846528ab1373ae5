"""The exceptions that a user is meant to read, and other people's errors in one line."""

from __future__ import annotations

__all__ = [
    "AnalysisError",
    "HessianError",
    "LeftAloneError",
    "ProbeError",
    "ThermoscopeError",
    "first_line",
]


class ThermoscopeError(Exception):
    """A mistake that the user can put right; its message names the thing and the remedy."""


class ProbeError(ThermoscopeError, ValueError):
    """A mistake in how probes were used."""


class HessianError(ThermoscopeError, ValueError):
    """A mistake in how the Hessian was asked for."""


class LeftAloneError(HessianError):
    """Another process of the group has died or left."""


class AnalysisError(ThermoscopeError):
    """A mistake in a run directory, a setting, or the name of a model or data set."""


def first_line(error: BaseException) -> str:
    """An error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
