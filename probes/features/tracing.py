"""The trace of one forward that shows which dimension of each tensor is what."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from inspect import signature
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from thermoscope.nests import leaves

from .axes import Axes, Axis, Strength, letters_of, new_axes
from .axis_rules import Dims, Rule, attended, dims_in, rule_of
from .interception import Interceptor
from .uncompiled import uncompiled

__all__ = ["AxisTrace"]

# torch takes faster kernels inside these, with other rounding, where no function is intercepted; so they are
# described from outside. A hook on a `TransformerEncoderLayer` does the same, so torch's global hooks see it.
_BLOCKS = (
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
_OPAQUE = (nn.MultiheadAttention, *_BLOCKS)


class AxisTrace:
    """Follows the axes of all tensors through a forward of a model, from `start` to `stop`.

    Nothing is written to a tensor, and no tensor is kept alive: axes are known by weak references.

    Attributes:
        is_active: whether a forward is followed.
        is_wanted: whether the next one is to be.
    """

    def __init__(self) -> None:
        self.is_active, self.is_wanted = False, True
        self._axes: Any = WeakTensorKeyDictionary()
        self._constants: Any = WeakTensorKeyDictionary()  # the model's parameters and buffers
        self._inside: list[tuple[nn.Module, Axes | None]] = []  # opaque modules that run, with what they read
        self._eye: _Eye | None = None
        self._hooks: list[Any] = []
        self._input: Axis | None = None
        self._may_turn = False

    def start(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin to follow: the model is about to run with these arguments."""
        self.stop()
        self.is_active, self._input = True, None
        for constant in chain(model.parameters(), model.buffers()):
            self._constants[constant] = True
        self._may_turn = any(getattr(part, "batch_first", True) is False for part in model.modules())
        for tensor in _tensors([args, kwargs]):
            axes = self.axes_of(tensor)
            if self._input is None:
                self._input = axes[0]
                axes[0].claim("B", Strength.INPUT)
            else:
                axes[0].claim("B", Strength.ARGUMENT)
        if any(isinstance(part, _OPAQUE) for part in model.modules()):
            self._hooks = [
                register_module_forward_pre_hook(_Entry(self)),
                register_module_forward_hook(_Exit(self), with_kwargs=True, always_call=True),
            ]
        self._eye = _Eye(self)
        self._eye.look()
        if isinstance(model, _OPAQUE):
            self.enter(model, args)

    def stop(self) -> None:
        """Follow no more. What is known of tensors is forgotten, but not the axes that were asked for."""
        if self._eye is not None:
            self._eye.look_away()
        for hook in self._hooks:
            hook.remove()
        self.is_active, self._eye = False, None
        self._axes, self._inside, self._hooks = WeakTensorKeyDictionary(), [], []

    def axes_of(self, tensor: torch.Tensor) -> Axes:
        """The axes of a tensor of the forward under way."""
        known: Axes | None = self._axes.get(tensor)
        if known is None or len(known) != tensor.ndim:
            is_constant = tensor in self._constants
            known = self._surrounding(tensor.ndim) or new_axes(tensor.ndim, is_constant=is_constant)
            self._axes[tensor] = known
        return known

    def letters(self, axes: Axes) -> str:
        """The layout that is known by now; see `letters_of`."""
        first = self._input is None or self._input.kind == "B"
        return letters_of(axes, batch_comes_first=first)

    def is_final(self, letters: str) -> bool:
        """Whether the rest of the forward can say nothing else."""
        return "B" in letters and "?" not in letters and not self._may_turn

    # -- functions ----------------------------------------------------------------------------------

    def follow(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a function and note what its results' dimensions are."""
        with torch._C.DisableTorchFunction():  # before it runs: it may change the shape in place
            before = [self._dims(arg) for arg in args], {k: self._dims(v) for k, v in kwargs.items()}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            self._note(list(_tensors(result)), rule_of(_name_of(func)), *before)
        return result

    def _note(
        self, results: list[torch.Tensor], rule: Rule | None, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        try:
            found = [] if rule is None or not results else rule(tuple(results[0].shape), *args, **kwargs)
        except Exception:  # a call that the rule cannot read
            found = []
        given = [dims for dims in dims_in([args, list(kwargs.values())]) if dims.axes]
        for i, tensor in enumerate(results):
            axes = found if isinstance(found, tuple) else found[i] if i < len(found) else ()
            if len(axes) == tensor.ndim:
                self._axes[tensor] = axes
            elif all(dims.axes[0].root.is_constant for dims in given):
                self._axes[tensor] = new_axes(tensor.ndim, is_constant=True)

    def _dims(self, value: Any) -> Any:
        """A nest of arguments, with `Dims` for tensors."""
        if isinstance(value, torch.Tensor):
            if is_lazy(value) or value.is_nested or value.ndim == 0:
                return Dims((), ())
            return Dims(self.axes_of(value), tuple(value.shape), isinstance(value, nn.Parameter))
        if type(value) in (tuple, list):
            return type(value)(self._dims(item) for item in value)
        return value

    # -- modules that nothing is seen inside of -----------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """An opaque module is about to run."""
        if self._eye is None or not self._eye.is_here:
            return
        self._eye.look_away()
        with torch._C.DisableTorchFunction():
            source = next(_tensors(args), None)
            self._inside.append((module, None if source is None else self.axes_of(source)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """It has run, or failed."""
        if self._eye is None or not self._eye.is_here or module not in [inner for inner, _ in self._inside]:
            return
        while self._inside.pop()[0] is not module:
            pass
        with torch._C.DisableTorchFunction():
            for tensor, axes in zip(_tensors(output), self._described(module, args, kwargs), strict=False):
                if tensor.ndim == len(axes):
                    self._axes[tensor] = axes
        if not self._inside:
            self._eye.look()

    def _described(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Axes]:
        """The axes of what an opaque module gives."""
        parameters = [name for name in signature(type(module).forward).parameters if name != "self"]
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        whole = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        known = {name: self.axes_of(tensor) for name, tensor in whole.items() if not tensor.is_nested}
        if isinstance(module, nn.MultiheadAttention):
            return attended(known["query"], known["key"], batch_first=module.batch_first)
        attention = next((m for m in module.modules() if isinstance(m, nn.MultiheadAttention)), None)
        main = known.get("tgt", known.get("src"))
        if attention is None or main is None:
            return []
        return attended(main, main, batch_first=attention.batch_first)[:1]

    def _surrounding(self, rank: int) -> Axes | None:
        """What a transformer's parts hand on is arranged as what it reads."""
        for module, axes in reversed(self._inside):
            if isinstance(module, _BLOCKS) and axes is not None and len(axes) == rank:
                channel = Axis()
                channel.claim("C", Strength.SURE)
                return (*axes[:-1], channel)
        return None


class _Eye(Interceptor):
    """Sees the functions that run in one thread."""

    def __init__(self, trace: AxisTrace):
        super().__init__()
        self._trace, self._thread = trace, threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the thread that runs."""
        return threading.get_ident() == self._thread

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _followed(self._trace, self.muted, func, args, kwargs or {})


@uncompiled  # what is followed runs as it is
def _followed(trace: AxisTrace, muted: bool, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs) if muted else trace.follow(func, args, kwargs)


class _Entry:
    """The hook before any module."""

    def __init__(self, trace: AxisTrace):
        self._trace = trace

    @uncompiled
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, _OPAQUE):
            self._trace.enter(module, args)


class _Exit:
    """The hook behind any module."""

    def __init__(self, trace: AxisTrace):
        self._trace = trace

    @uncompiled
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(module, _OPAQUE):
            self._trace.leave(module, args, kwargs, output)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Those with dimensions in a nest."""
    for tensor in leaves(value, torch.Tensor):
        if not is_lazy(tensor) and not tensor.is_nested and tensor.ndim > 0:
            yield tensor


def _name_of(func: Callable[..., Any]) -> str:
    """`add` for `torch.add` and `Tensor.add_`, `T` for the property."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    return name.strip("_")
