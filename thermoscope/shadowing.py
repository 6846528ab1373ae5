"""Whether the packages that were found are Thermoscope's, and not a user's own of the same name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .errors import ThermoscopeError

__all__ = ["require_own_packages"]


def require_own_packages(*names: str) -> None:
    """Refuse to go on if something else stands where a package of Thermoscope is looked for.

    Raises:
        ThermoscopeError: naming the file that is in the way, and the way out.
    """
    home = Path(__file__).resolve().parents[1]
    for name in names:
        file = _file_of(name)
        if file is None:
            raise ThermoscopeError(f"thermoscope's package {name!r} is missing; install thermoscope again.")
        if not Path(file).resolve().is_relative_to(home / name):
            raise ThermoscopeError(
                f"{file} shadows thermoscope's package {name!r}; rename it, or start from another folder "
                "(and look at PYTHONPATH)."
            )


def _file_of(name: str) -> str | None:
    """Where Python finds a package, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that somebody has made by hand
        return getattr(sys.modules[name], "__file__", None)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)
