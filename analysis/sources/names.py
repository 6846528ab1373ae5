"""Names such as `torchvision:resnet18` and `my.module:build`, and the functions that the latter mean."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from thermoscope.errors import AnalysisError
from thermoscope.nearest import the_nearest

__all__ = ["call", "function_of", "require_known", "source_and_rest"]


def source_and_rest(name: str, examples: str) -> tuple[str, str]:
    """The two sides of a name's colon."""
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise AnalysisError(f"{name!r} does not say where to look; write {examples}.")
    return source, rest


def call(module_name: str, function_name: str, **arguments: Any) -> Any:
    """Call a function of the user's with those of the arguments that it takes."""
    function = function_of(module_name, function_name)
    accepted = inspect.signature(function).parameters
    return function(**{k: v for k, v in arguments.items() if k in accepted})


def function_of(module_name: str, function_name: str) -> Callable[..., Any]:
    """A function of the user's, whose module may stand in the working directory."""
    # Before files of these names in the working directory are found first.
    import hessian  # noqa: F401
    import probes  # noqa: F401

    if os.getcwd() not in sys.path:  # `my_models.py` stands where the command is typed
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AnalysisError(
            f"there is no module {error.name!r} (wanted by {module_name!r}); install it, or type the command "
            "in the folder where it stands."
        ) from error
    functions = {n: value for n, value in vars(module).items() if callable(value) and not n.startswith("_")}
    require_known(function_name, list(functions), f"{module_name!r} has no function")
    function: Callable[..., Any] = functions[function_name]
    return function


def require_known(name: str, known: Sequence[str], refusal: str) -> None:
    """Refuse a name that is not among the known ones, with the nearest."""
    if name not in known:
        raise AnalysisError(f"{refusal} {name!r}; {the_nearest(name, known)}.")
