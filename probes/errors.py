"""The one exception that a user of the probes is meant to read."""

__all__ = ["ProbeError"]


class ProbeError(ValueError):
    """A mistake in how the probes were used; its message names the thing and the remedy."""
