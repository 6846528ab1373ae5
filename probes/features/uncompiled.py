"""Functions that run as they are also where `torch.compile` compiles their callers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from torch._compile import _disable_dynamo

__all__ = ["uncompiled"]

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """Do what `torch.compiler.disable` does, but load the compiler only where something is compiled.

    To load it takes twice as long as all of `probes`.
    """
    disabled: Callable[P, T] = _disable_dynamo(function)  # loads it when first called

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if "torch._dynamo" in sys.modules:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return run
