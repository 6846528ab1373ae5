"""The exception for everything that a user of the command line can put right."""

__all__ = ["AnalysisError"]


class AnalysisError(Exception):
    """Its message is one sentence that names the thing and the remedy."""
