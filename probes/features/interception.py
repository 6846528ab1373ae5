"""Operations that run directly in a module's own code, seen without tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch.overrides import TorchFunctionMode, _get_current_function_mode

from .patterns import HookPoint

__all__ = ["Frame", "Interceptor", "OperationInterceptor", "operation_name"]

# Python's operators reach torch under these names; torchvision's node names are those of `operator`.
_OPERATOR_NAMES = {"rsub": "sub", "rdiv": "truediv", "div": "truediv", "rpow": "pow", "remainder": "mod"}


Seen: TypeAlias = Callable[[HookPoint, Callable[..., Any], Any], None]


class Interceptor(TorchFunctionMode):
    """A mode that looks at torch functions, or looks away."""

    def __init__(self) -> None:
        super().__init__()
        self.muted, self._is_entered = True, False

    def look(self) -> None:
        """See functions from now on."""
        self.muted = False
        if not self._is_entered:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._is_entered = True

    def look_away(self) -> None:
        """Let functions through. Off the stack where that is possible."""
        self.muted = True
        # What lies above it stays: a mode of the user's, or another set's, which then takes it along.
        while isinstance(top := _get_current_function_mode(), Interceptor) and top.muted:
            top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            top._is_entered = False


class OperationInterceptor(Interceptor):
    """Tells `seen` which functions ran in the code of which module, and their results."""

    scope: HookPoint

    def __init__(self, seen: Seen):
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.muted:
            self._seen(self.scope, func, result)
        return result


class Frame:
    """A module call in progress, with the interceptor of the operations in its own code."""

    def __init__(self, candidate: HookPoint, interceptor: OperationInterceptor | None):
        self.candidate, self.path = candidate, candidate.scope
        self._interceptor = interceptor
        if interceptor is not None:
            interceptor.scope = candidate

    def pause(self) -> None:
        """Let functions through: other code than this module's runs."""
        if self._interceptor is not None:
            self._interceptor.look_away()

    def resume(self) -> None:
        """Look again: this module's own code goes on."""
        if self._interceptor is not None:
            self._interceptor.look()


def operation_name(function: Callable[..., Any]) -> str:
    """`add` for `a + b`, `a += b`, `torch.add`, `a.add_(b)`; empty for property access."""
    name = getattr(function, "__name__", "")
    if name in ("__get__", "__set__", "__delete__"):
        return ""
    name = name.strip("_")
    return _OPERATOR_NAMES.get(name, name)
