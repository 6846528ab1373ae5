"""Taps: hooks that hand over the values at the selected hook points of one forward, and only read."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from inspect import getattr_static
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import nn

from thermoscope.errors import ProbeError, reason

from .interception import Frame, OperationInterceptor, operation_name
from .nests import argument, described, element, tensors
from .patterns import INPUT, OUTPUT, HookPoint, Selection, no_such_layer
from .places import Places
from .tracing import AxisTrace
from .uncompiled import uncompiled

__all__ = ["ForwardStopped", "Receiver", "Taps"]


class ForwardStopped(Exception):
    """Everything that was wanted of this forward has been read, so the rest of it need not run."""


class Receiver(Protocol):
    """What wants the values."""

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A forward of the model starts with these arguments: should it be read?"""

    def receive(self, point: HookPoint, value: Any) -> None:
        """A Tensor or PackedSequence, live: it must be copied before this returns."""

    def end(self) -> None:
        """The forward that was read came to its end without an exception."""


class Taps:
    """Hooks on every module that may concern the selection, until `detach()`.

    Names are those of torchvision: the second call of module `relu` in one forward is `relu_1`, an
    operation is named after the module whose code runs it. Operations are intercepted by a
    `TorchFunctionMode` that is on only while code of a module that may hold a wanted one runs, so no
    tracing is needed and functions inside other modules go their usual way.

    Nothing is raised in the midst of the user's forward: what went wrong is kept in `error` until the next
    forward that is read. Points that hold no features are noted in `skipped`, if that is given.

    A call of the model inside its own forward is a part of that forward, and so is not one in another thread.
    Forwards whose tensors hold no values are not read: those that `torch.func`, `torch.export` and other
    tracers run.

    A `trace` follows the forwards in which it is wanted. After `narrow`, one that is not followed ends with
    `ForwardStopped` as soon as all points were handed over; the receiver is told that it has ended.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        receiver: Receiver,
        *,
        trace: AxisTrace | None = None,
        skipped: dict[str, str] | None = None,
    ):
        selection.check(model)
        self.error: ProbeError | None = None
        self._stop_after: int | None = None
        self._model, self._selection, self._receiver = model, selection, receiver
        self._trace, self._skipped = trace, skipped
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._wanted: dict[str, list[HookPoint]] = {}  # by candidate name; also remembers what is not wanted
        self._seen: dict[str, HookPoint] = {}
        self._places = Places()
        self._called_from: dict[str, set[str]] = {}  # module path -> paths of the modules that called it
        self._holds_operations: dict[str, bool] = {}  # by path, as far as was asked
        self._frames: list[Frame] = []
        self._calls: Counter[str] = Counter()
        self._handed_over = 0  # points, in the forward under way
        self._pruned = 0  # candidates that were known when unused hooks were last removed
        self._batch: int | None = None  # examples in the forward under way, if its first argument tells
        self._live = self._complete = self._all_matched = False
        self._lock = threading.Lock()  # of the beginning of a forward
        self._thread = 0  # in which the forward under way runs
        self._call: FrameType | None = None  # of the model in Python's stack, while the forward is under way
        concerned = selection.concerned(model)
        self._hooks = {path: self._hook(m) for path, m in model.named_modules() if path in concerned}
        _forget_compiled(model)

    def _hook(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        before, after, leave = (_Hook(run, self._fail) for run in (self._before, self._after, self._leave))
        try:
            return [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True, always_call=True),
            ]
        except RuntimeError:  # TorchScript
            if module is self._model:
                raise ProbeError(
                    "the model is TorchScript, which takes no hooks; probe the module that it was made from."
                ) from None
            return []

    def detach(self) -> None:
        """Remove every hook. Safe to call twice."""
        self._abandon()
        for handles in self._hooks.values():
            for handle in handles:
                handle.remove()
        self._hooks.clear()
        _forget_compiled(self._model)

    @property
    def stops(self) -> bool:
        """Whether forwards end as soon as all has been read."""
        return self._stop_after is not None

    def narrow(self, names: Sequence[str]) -> None:
        """Read only these of the points that were read so far, and stop each forward after the last."""
        self._selection, self._skipped, self._stop_after = Selection(names), None, len(names)
        self._wanted.clear()
        self._holds_operations.clear()
        self._pruned = 0
        _forget_compiled(self._model)

    def run_whole(self) -> None:
        """Stop no forward any more."""
        self._stop_after = None

    def require_matches(self, all_of_them: bool = True) -> None:
        """Refuse a selection of which a part, or everything inside the model, matched nothing so far.

        Raises:
            ProbeError: naming the pattern, and whether it is unknown or never ran.
        """
        if self._all_matched:
            return
        unmatched = self._selection.unmatched(self._seen.values())
        if not all_of_them and len(unmatched) < len(self._selection.include) - 1:
            unmatched = []  # more than the model's input
        for pattern in unmatched:
            paths = set(self._paths.values())
            script = next((path for path, hooks in self._hooks.items() if not hooks), None)
            if script is not None and isinstance(pattern, str) and pattern.startswith(script):
                raise ProbeError(
                    f"layer {pattern!r} is TorchScript, which takes no hooks; probe the module around it, or "
                    "build the model with the module that it was made from."
                )
            if isinstance(pattern, str) and pattern.partition(":")[0] in paths:
                raise ProbeError(
                    f"layer {pattern!r} exists but the model's forward never runs it; leave it out "
                    "(or, if the model was compiled before the probes were attached, call "
                    "torch.compiler.reset())."
                )
            raise ProbeError(no_such_layer(pattern, [INPUT, *self._seen, *sorted(paths - {""})]))
        self._all_matched = True

    def known_names(self) -> list[str]:
        """Of modules, and of the operations seen so far."""
        return [INPUT, OUTPUT, *self._seen, *filter(None, self._paths.values())]

    # -- one forward --------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self._model and not self._begin(args, kwargs):
            return
        if not self._live or threading.get_ident() != self._thread:
            return
        path = self._paths.get(id(module), "")
        caller = self._frames[-1] if self._frames else None
        if caller is not None:
            caller.pause()
            self._called_from.setdefault(path, set()).add(caller.path)
        candidate = self._candidate(
            self._numbered(path or OUTPUT), "output", path, type(module).__name__, module
        )
        self._frames.append(Frame(candidate, self._interceptor(path, module)))
        self._hand_over(candidate, "input", (args, kwargs), lambda pick: argument(args, kwargs, pick))
        self._frames[-1].resume()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """A call of the model: whether it belongs to a forward that is read."""
        with self._lock:
            if self._live and self._is_running():
                return threading.get_ident() == self._thread
            self._abandon()  # what an interrupted forward left
            # A call inside a backward is activation checkpointing running the forward again.
            inside_backward = torch._C._current_graph_task_id() != -1
            if inside_backward or _is_traced() or not self._receiver.begin(args, kwargs):
                return False
            self._live, self.error = True, None
            self._thread, self._call = threading.get_ident(), _calling_frame()
            if self._trace is not None and self._trace.is_wanted:
                self._trace.start(self._model, args, kwargs)
        first = next(tensors([args, kwargs]), None)
        self._batch = first.size(0) if isinstance(first, torch.Tensor) else None
        return True

    def _is_running(self) -> bool:
        """Whether the forward under way goes on; no hook is told of a KeyboardInterrupt."""
        frame = sys._current_frames().get(self._thread)
        while frame is not None and frame is not self._call:
            frame = frame.f_back
        return frame is not None

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._is_innermost(module):
            return
        frame = self._frames[-1]
        frame.pause()
        self._hand_over(frame.candidate, "output", output, lambda pick: element(output, pick, self._batch))
        self._complete = len(self._frames) == 1

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if not self._is_innermost(module):
            return
        self._frames.pop().pause()
        if self._frames:
            self._frames[-1].resume()
            return
        complete, self._live = self._complete or self._has_enough(), False
        if complete:
            if len(self._wanted) > self._pruned:
                self._pruned = len(self._wanted)
                self._prune()
            if self._trace is not None:
                self._trace.stop()
            self._receiver.end()
            self._refuse_moved()
        self._abandon()

    def _refuse_moved(self) -> None:
        """Note that one of several calls of a module was left out, which gives the others its number."""
        for name, ((_, before), (file, now)) in self._places.moved.items():
            base = name if name in self._paths.values() else re.sub(r"_\d+$", "", name)
            if f"{base}_1" in self._seen:
                self.error = self.error or ProbeError(
                    f"layer {name!r} was the call in line {before} of {os.path.basename(file)} before and is "
                    f"that in line {now} now: the forward leaves out calls of {base!r}, so they cannot be "
                    "told apart; give each place a module of its own, or leave the layer out."
                )

    def _is_innermost(self, module: nn.Module) -> bool:
        """Whether a hook of this module belongs to the innermost call of the forward that is read."""
        if not self._live or not self._frames or threading.get_ident() != self._thread:
            return False
        return self._frames[-1].candidate.module is module

    def _fail(self, error: Exception) -> None:
        """Give a forward up, of which the probes, or what the user gave them, could make nothing."""
        self._abandon()
        self.error = _as_probe_error(error)

    def _operation(self, scope: HookPoint, function: Callable[..., Any], result: Any) -> None:
        """An operation has run directly in the code of module `scope`."""
        try:
            self._hand_over_result(scope, function, result)
        except ForwardStopped:
            raise
        except Exception as error:
            self._fail(error)

    def _hand_over_result(self, scope: HookPoint, function: Callable[..., Any], result: Any) -> None:
        path, name = scope.scope, operation_name(function)
        if not name or next(tensors(result), None) is None:
            return
        numbered = self._numbered(f"{path}.{name}" if path else name)
        candidate = self._candidate(numbered, "operation", path, name, scope.module)
        self._hand_over(candidate, "operation", result, lambda pick: element(result, pick))

    def _hand_over(self, candidate: HookPoint, kind: str, whole: Any, value_at: Callable[[str], Any]) -> None:
        name = candidate.name
        if name not in self._wanted:
            self._wanted[name] = self._selection.points(candidate)
        self._seen.setdefault(name, candidate)
        if self._wanted[name] and kind != "input":
            self._places.note(name, self._call)
        for point in self._wanted[name]:
            if point.kind != kind or self.error is not None:
                continue
            try:
                value = value_at(point.pick)
                if value is None:
                    problem = (
                        f"layer {point.name!r} holds no tensor of floating-point features, but "
                        f"{described(whole)}; leave it out, or name the element that does, as in "
                        f"'{candidate.name}:1'."
                    )
                    if self._skipped is None:
                        raise ProbeError(problem)
                    self._skipped[point.name] = problem
                    continue
                with torch._C.DisableTorchFunction():  # hidden from other modes, such as other taps'
                    self._receiver.receive(point, value)
                self._handed_over += 1
                if self._has_enough() and point.name != OUTPUT:  # which the forward has at its end
                    raise ForwardStopped
            except ForwardStopped:
                raise
            except Exception as error:
                self.error = _as_probe_error(error, point.name)

    def _has_enough(self) -> bool:
        if self._trace is not None and self._trace.is_active:  # what comes may tell of what has been
            return False
        return self._stop_after is not None and self._handed_over >= self._stop_after and self.error is None

    def _candidate(
        self, name: str, kind: Literal["output", "operation"], scope: str, type_name: str, module: nn.Module
    ) -> HookPoint:
        """The point of that name, which is the same in every forward as a rule."""
        known = self._seen.get(name)
        if known is None or known.module is not module or known.type != type_name:
            known = HookPoint(name, kind, scope, type_name, module)
        return known

    def _numbered(self, base: str) -> str:
        count = self._calls[base]
        self._calls[base] += 1
        return f"{base}_{count}" if count else base

    def _interceptor(self, path: str, module: nn.Module) -> OperationInterceptor | None:
        if path not in self._holds_operations:
            self._holds_operations[path] = self._selection.may_hold_operations(path, module)
        return OperationInterceptor(self._operation) if self._holds_operations[path] else None

    def _abandon(self) -> None:
        """Forget the forward under way, if any."""
        while self._frames:
            self._frames.pop().pause()
        if self._trace is not None:
            self._trace.stop()
        self._calls.clear()
        self._places.moved.clear()
        self._handed_over = 0
        self._call = None
        self._live = self._complete = False

    def _prune(self) -> None:
        """Unhook the modules that ran and concern no wanted point: later forwards pay for the rest only."""
        wanted = [point for points in self._wanted.values() for point in points]
        scopes = {point.scope for point in wanted if point.kind == "operation"}
        useful = {"", *(point.scope for point in wanted)}
        pruned = False
        for path, callers in self._called_from.items():
            if path not in useful and not callers & scopes and path in self._hooks:
                for handle in self._hooks.pop(path):
                    handle.remove()
                pruned = True
        if pruned:
            _forget_compiled(self._model)


def _forget_compiled(model: nn.Module) -> None:
    """Have `torch.compile` compile this model's code anew: what it has compiled ignores changes of hooks."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    try:
        compiled = [reference() for reference in dynamo.convert_frame.input_codes.seen]
        wrapper = dynamo.external_utils.__file__
        reset = dynamo.eval_frame.reset_code
    except AttributeError:  # nothing was compiled, or a torch without this private interface: see `step`
        return
    # Not by plain attribute access, for which TorchScript's modules have no answer.
    forwards = {getattr(getattr_static(type(m), "forward", None), "__code__", None) for m in model.modules()}
    for code in compiled:
        # The wrapper's code calls a model whose own class is one of torch's.
        if code is not None and (code in forwards or code.co_filename == wrapper):
            reset(code)


def _is_traced() -> bool:
    """Whether what runs is a transformation or a trace of the model, whose tensors hold no values."""
    modes = torch._C._TorchDispatchModeKey
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or any(
            torch._C._get_dispatch_mode(m) is not None for m in (modes.FAKE, modes.PROXY, modes.FUNCTIONAL)
        )
    )


def _calling_frame() -> FrameType | None:
    """Of the module whose hook runs, in Python's stack."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != nn.modules.module.__file__:
        frame = frame.f_back
    return frame


def _as_probe_error(error: Exception, layer: str = "") -> ProbeError:
    """One sentence about whatever went wrong."""
    if isinstance(error, ProbeError):
        return error
    what = f"layer {layer!r} cannot be read" if layer else "the probes cannot follow this forward"
    why = (reason(error) or "no more is known")[:200]
    found = ProbeError(f"{what} ({type(error).__name__}: {why}); leave it out with exclude=... .")
    found.__cause__ = error
    return found


class _Hook:
    """A hook that stays behind when its model is copied or pickled: the copy's does nothing."""

    def __init__(self, run: Callable[..., None], fail: Callable[[Exception], None]):
        self._run, self._fail = run, fail

    @uncompiled
    def __call__(self, *args: Any) -> None:
        try:
            self._run(*args)
        except ForwardStopped:
            raise
        except Exception as error:
            self._fail(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments, returns None, needs no import
