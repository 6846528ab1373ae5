"""Operations that run directly in a module's own code, seen without tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch.overrides import TorchFunctionMode, _get_current_function_mode

from .selection import HookPoint

__all__ = ["Frame", "Interceptor", "operation_name"]

# Python's operators reach torch under these names; torchvision's node names are those of `operator`.
_OPERATOR_NAMES = {"rsub": "sub", "rdiv": "truediv", "div": "truediv", "rpow": "pow", "remainder": "mod"}


Seen: TypeAlias = Callable[[HookPoint, Callable[..., Any], Any], None]


class Frame:
    """A module call in progress, with the interceptor of the operations in its own code."""

    def __init__(self, candidate: HookPoint, interceptor: Interceptor | None):
        self.candidate, self.path = candidate, candidate.scope
        self._interceptor = interceptor
        if interceptor is not None:
            interceptor.scope = candidate

    def pause(self) -> None:
        """Let functions through: other code than this module's runs. Off the stack where that is possible."""
        if self._interceptor is not None:
            self._interceptor.muted = True
            # What lies above it stays: a mode of the user's, or another set's, which then takes it along.
            while isinstance(top := _get_current_function_mode(), Interceptor) and top.muted:
                top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                top.entered = False

    def resume(self) -> None:
        """Look again: this module's own code goes on."""
        if self._interceptor is not None:
            self._interceptor.muted = False
            if not self._interceptor.entered:
                self._interceptor.__enter__()  # type: ignore[no-untyped-call]
                self._interceptor.entered = True


class Interceptor(TorchFunctionMode):
    """Sees the torch functions that run between its frame's `resume` and `pause`.

    Args:
        seen: is called with the module whose code runs, the function and its result.
    """

    scope: HookPoint

    def __init__(self, seen: Seen):
        super().__init__()
        self.muted, self.entered = True, False
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.muted:
            self._seen(self.scope, func, result)
        return result


def operation_name(function: Callable[..., Any]) -> str:
    """`add` for `a + b`, `a += b`, `torch.add`, `a.add_(b)`; empty for property access."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        return ""
    name = name.strip("_")
    return _OPERATOR_NAMES.get(name, name)
