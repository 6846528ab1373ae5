"""How tensors flow between the hook points of one forward, found by running the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from probes import HookPoint, Selection
from probes.features.taps import Taps
from thermoscope.errors import AnalysisError
from thermoscope.nests import leaves

__all__ = ["Call", "trace"]


@dataclass(eq=False)
class Call:
    """One module call or operation of a forward.

    Attributes:
        name: of its hook point.
        type: name of the module's class or of the operation.
        module: the module, for a module call.
        parent: the module call that it runs in; None for the model's own call and its input. It may be one
            without a name, which returned no features.
        sources: the calls whose results it is made of.
        relays: whether it returns the result of its one source as it is, as a container does.
    """

    name: str = ""
    type: str = ""
    module: nn.Module | None = field(default=None, repr=False)
    parent: Call | None = field(default=None, repr=False)
    sources: frozenset[Call] = field(default=frozenset(), repr=False)
    relays: bool = False


def trace(model: nn.Module, run: Callable[[nn.Module], Any], probed: Sequence[str]) -> list[Call]:
    """The calls of the last forward that return features, in the order in which they end.

    A call that hands on just what it was given (an identity, dropout in eval mode) is left out unless it
    is probed.

    Raises:
        ProbeError: for a probed name that does not exist or did not run.
        AnalysisError: if the model did not run.
    """
    recorder = _Recorder(model, probed)
    try:
        with recorder.results, recorder.flow:
            run(model)
        if recorder.taps.error is not None:
            raise recorder.taps.error
        if not recorder.calls:
            raise AnalysisError("`run` did not call the model; pass one like lambda model: model(x).")
        recorder.taps.require_matches()
    finally:
        recorder.detach()
    return recorder.calls


class _Recorder:
    """Names from taps on every hook point, whole results from hooks and a function mode behind them."""

    def __init__(self, model: nn.Module, probed: Sequence[str]):
        self.calls: list[Call] = []
        self.flow = _Flow(model)
        self.results = _Results(self.flow)
        self._probed = set(probed)
        self._stack: list[tuple[Call, _Given]] = []
        self._points: list[tuple[HookPoint, Any]] = []  # of the module call that ends
        self._model = model
        self.taps = Taps(model, Selection([_any_call, *probed]), self, skipped={})
        self._hooks = [
            hook
            for module in model.modules()
            for hook in (
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave),
            )
        ]

    def detach(self) -> None:
        self.taps.detach()
        for hook in self._hooks:
            hook.remove()

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return True

    def end(self) -> None:
        pass

    def receive(self, point: HookPoint, value: Any) -> None:
        if point.kind == "operation":
            given, result = self.results.last
            self._record(Call(point.name, point.type, parent=self._parent()), given, result)
        elif point.kind == "output":
            self._points.append((point, value))
        elif point.pick:
            self._record(Call(point.name, "input", parent=self._parent()), None, value)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self._model:
            self._stack.clear()
            self.calls.clear()
            self._record(Call("input", "input"), None, [args, kwargs])
        given = self.flow.given([args, kwargs])
        self._stack.append((Call(module=module, parent=self._parent()), given))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call, given = self._stack.pop()
        points, self._points = self._points, []
        for point, value in points:
            if point.pick:
                self._record(Call(point.name, point.type, parent=self._parent()), None, value)
            else:
                call.name, call.type = point.name, type(module).__name__
                self._record(call, given, output)

    def _parent(self) -> Call | None:
        return self._stack[-1][0] if self._stack else None

    def _record(self, call: Call, given: _Given | None, result: Any) -> None:
        tensors = list(_tensors(result))
        if given is not None and call.name not in self._probed and self.flow.unchanged(given, tensors):
            return
        call.sources, call.relays = self.flow.sources(tensors), self.flow.is_one_result(tensors)
        self.flow.mark(tensors, call)
        self.calls.append(call)


def _any_call(point: HookPoint) -> bool:
    return True


_State = tuple[frozenset[Call], int]  # what made a tensor's values, and how many writes its memory has had
_Given = dict[int, tuple[torch.Tensor, _State]]  # by id: tensors themselves compare element by element


@dataclass(eq=False)
class _Origin:
    """What a tensor's values are made of."""

    calls: frozenset[Call]
    memory: list[_Origin] = field(default_factory=list)  # in-place writes to it or to any view of it
    seen: int = 0  # those of them that are already in `calls`
    is_result: bool = False  # returned like this by a call


class _Flow(TorchDispatchMode):
    """Follows, beneath all modules and functions, which calls every tensor was made by."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._origins: Any = WeakTensorKeyDictionary()  # from tensors to `_Origin`s
        # A normalization's running mean must not tie its second call to its first.
        self._fixed = {id(t) for group in (model.parameters(), model.buffers()) for t in group}

    def sources(self, tensors: list[torch.Tensor]) -> frozenset[Call]:
        """The calls that made these values."""
        return frozenset[Call]().union(*(self._calls(t) for t in tensors))

    def mark(self, tensors: list[torch.Tensor], call: Call) -> None:
        """From here on, these values are the call's."""
        for tensor in tensors:
            if id(tensor) not in self._fixed:
                origin = self._origin(tensor)
                origin.calls, origin.seen, origin.is_result = frozenset([call]), len(origin.memory), True

    def is_one_result(self, tensors: list[torch.Tensor]) -> bool:
        """Whether these are all returned by one call and have not been written to since."""
        origins = [self._origin(t) for t in tensors]
        untouched = all(o.is_result and o.seen == len(o.memory) for o in origins)
        return untouched and len({o.calls for o in origins}) == 1

    def given(self, arguments: Any) -> _Given:
        """What is given to a call, as it is before."""
        return {id(tensor): (tensor, self._state_of(tensor)) for tensor in _tensors(arguments)}

    def unchanged(self, given: _Given, tensors: list[torch.Tensor]) -> bool:
        """Whether all these tensors were given, and have neither been written to nor marked since."""
        return all(id(t) in given and given[id(t)][1] == self._state_of(t) for t in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors([args, kwargs]))
        calls = self.sources(inputs)
        result = func(*args, **kwargs)
        for tensor in _written(func, args, kwargs):
            if id(tensor) in self._fixed:
                continue
            origin = self._origin(tensor)
            origin.calls, origin.is_result = calls, False
            origin.memory.append(origin)
            origin.seen = len(origin.memory)
        known = self._fixed.union(map(id, inputs))
        for tensor in _tensors(result):
            if id(tensor) not in known:
                bases = (t for t in inputs if _share_memory(t, tensor))
                memory = next((self._origin(base).memory for base in bases), [])
                self._origins[tensor] = _Origin(calls, memory, len(memory))
        return result

    def _state_of(self, tensor: torch.Tensor) -> _State:
        return self._calls(tensor), len(self._origin(tensor).memory)

    def _origin(self, tensor: torch.Tensor) -> _Origin:
        if tensor not in self._origins:
            self._origins[tensor] = _Origin(frozenset())
        origin: _Origin = self._origins[tensor]
        return origin

    def _calls(self, tensor: torch.Tensor) -> frozenset[Call]:
        if id(tensor) in self._fixed or tensor not in self._origins:
            return frozenset()
        origin = self._origin(tensor)
        writes = (other.calls for other in origin.memory[origin.seen :] if other is not origin)
        return origin.calls.union(*writes)


class _Results(TorchFunctionMode):
    """Remembers what the last torch function was given and returned: taps hand over its first tensor only."""

    def __init__(self, flow: _Flow) -> None:
        super().__init__()
        self.last: tuple[_Given, Any] = {}, None
        self._flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self._flow.given([args, kwargs])
        result = func(*args, **(kwargs or {}))
        if next(_tensors(result), None) is not None:  # the taps themselves ask for shapes and types
            self.last = given, result
        return result


def _share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch._C._is_alias_of(a, b))  # type: ignore[attr-defined]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an operator changes in place."""
    for i, parameter in enumerate(func._schema.arguments):
        if parameter.alias_info is not None and parameter.alias_info.is_write:
            yield from _tensors(args[i] if i < len(args) else kwargs.get(parameter.name))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a nest, which may hold sets: here their order does not matter."""
    for found in leaves(value, (torch.Tensor, set)):
        if isinstance(found, set):
            yield from _tensors(list(found))
        else:
            yield found
