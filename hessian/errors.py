"""The one exception that a user of the Hessian is meant to read."""

__all__ = ["HessianError"]


class HessianError(ValueError):
    """A mistake in how the Hessian was asked for; its message names the thing and the remedy."""
