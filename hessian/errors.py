"""The one exception that a user of the Hessian is meant to read."""

from __future__ import annotations

__all__ = ["HessianError", "LeftAloneError", "first_line"]


class HessianError(ValueError):
    """A mistake in how the Hessian was asked for; its message names the thing and the remedy."""


class LeftAloneError(HessianError):
    """Another process of the group has died or left."""


def first_line(error: BaseException) -> str:
    """An error's kind, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
