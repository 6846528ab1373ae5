"""Which layers: names, globs, regular expressions, module types and predicates, with exclusions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from thermoscope.errors import ProbeError
from thermoscope.nearest import the_nearest

__all__ = ["HookPoint", "Pattern", "Selection", "as_list", "glob_matches", "no_such_layer"]

Pattern: TypeAlias = "str | re.Pattern[str] | type[nn.Module] | nn.Module | Callable[[HookPoint], bool]"
INPUT, OUTPUT = "input", "output"  # the names of the model's own input and output


@dataclass(frozen=True)
class HookPoint:
    """A place in a model where features can be read.

    Attributes:
        name: torchvision's node name (`layer1.0.relu_2`, `layer1.0.add`); `layer1:in` for a module's
            input, `lstm:1.0` for element [1][0] of its output.
        kind: what the features are: a module's output, its input, or an operation's result.
        scope: name of the module whose output or input it is, or in which the operation runs.
        type: name of the module's class or of the operation.
        module: the module called `scope`.
        layout: letters of the dimensions, as in `"BCHW"`, where a survey has found it.
    """

    name: str
    kind: Literal["output", "input", "operation"]
    scope: str
    type: str
    module: nn.Module
    layout: str = ""

    def picked(self, pick: str) -> HookPoint:
        """The point one step inside this one: `pick` says which element of the value."""
        kind: Literal["output", "input"] = "input" if pick.split(".")[0] == "in" else "output"
        kept = self.kind if self.kind == "operation" else kind
        return HookPoint(f"{self.name}:{pick}", kept, self.scope, self.type, self.module)

    @property
    def pick(self) -> str:
        """What stands behind the colon: `"in"`, `"1.0"`, or nothing."""
        return self.name.partition(":")[2]


class Selection:
    """A compiled choice of hook points.

    In a glob `*` and `?` stop at dots and `**` does not. A glob whose last part is only `*` or `**`
    means modules; one with a letter there (`layer*.*.add`, `**.relu*`) means operations as well.
    Types select every call of such modules, a module every call of itself. Predicates are asked about module
    outputs and operations. Layers that are named in `also` are wanted besides, whatever `exclude` says.

    Attributes:
        include: the patterns that somebody asked for.
        asked: names of the points that these have selected so far.
    """

    def __init__(
        self,
        include: Pattern | Iterable[Pattern],
        exclude: Pattern | Iterable[Pattern] = (),
        also: Iterable[str] = (),
    ):
        self.include = as_list(include)
        self.asked: set[str] = set()
        self._include = [_Matcher(pattern) for pattern in self.include]
        self._also = [_Matcher(name) for name in also]
        self._exclude = [_Matcher(pattern) for pattern in as_list(exclude)]
        if not self._include:
            raise ProbeError("no layers were asked for: pass at least one name, glob or type in `layers`.")

    def points(self, candidate: HookPoint) -> list[HookPoint]:
        """The points at this module call or operation that are wanted: itself, its input, its elements."""
        found: dict[str, HookPoint] = {}
        for matcher in self._include:
            for point in matcher.points(candidate):
                if not any(point in m.points(candidate) or m.takes(candidate) for m in self._exclude):
                    found.setdefault(point.name, point)
        self.asked.update(found)
        for matcher in self._also:
            for point in matcher.points(candidate):
                found.setdefault(point.name, point)
        return list(found.values())

    def may_hold_operations(self, scope: str, module: nn.Module) -> bool:
        """Whether an operation that runs directly in this module could be wanted."""
        wanted = (*self._include, *self._also)
        return not _is_primitive(module) and any(m.may_hold_operations(scope, module) for m in wanted)

    def concerned(self, model: nn.Module) -> set[str]:
        """Paths of the modules whose calls matter: those that may be wanted, and the model itself.

        Where an operation is wanted, all do: it must be known whose code it runs in.
        """
        modules = dict(model.named_modules())
        if any(self.may_hold_operations(*module) for module in modules.items()):
            return set(modules)
        return {"", *(path for path, module in modules.items() if self._may_want(path, module))}

    def _may_want(self, path: str, module: nn.Module) -> bool:
        return any(matcher.may_want(path, module) for matcher in (*self._include, *self._also))

    def unmatched(self, candidates: Iterable[HookPoint]) -> list[Pattern]:
        """The patterns that none of these module calls and operations satisfies."""
        seen = list(candidates)
        return [m.pattern for m in self._include if not any(m.points(c) for c in seen)]

    def check(self, model: nn.Module) -> None:
        """Refuse at once a pattern that cannot match anything in this model.

        Raises:
            ProbeError: naming the pattern and the nearest names that exist.
        """
        modules = dict(model.named_modules())
        for matcher in self._include:
            if not matcher.possible(modules):
                raise ProbeError(no_such_layer(matcher.pattern, [INPUT, OUTPUT, *filter(None, modules)]))


def no_such_layer(pattern: Pattern, names: Sequence[str]) -> str:
    """One sentence about a pattern without a match."""
    if isinstance(pattern, type):
        return f"the model has no layer of type {pattern.__name__}."
    if isinstance(pattern, nn.Module):
        return f"the {type(pattern).__name__} given as a layer is no part of the model, or never runs."
    if callable(pattern):
        return f"the predicate {getattr(pattern, '__name__', 'given')} accepted none of the model's layers."
    text = pattern if isinstance(pattern, str) else pattern.pattern
    return f"no layer matches {text!r}; {the_nearest(text, names)}."


def glob_matches(glob: str, name: str) -> bool:
    """Whether a layer's name satisfies a glob."""
    return _glob_regex(glob).fullmatch(name) is not None


class _Matcher:
    """One pattern."""

    def __init__(self, pattern: Pattern):
        self.pattern = pattern
        self.glob, _, self.pick = pattern.partition(":") if isinstance(pattern, str) else ("", "", "")
        if isinstance(pattern, str):
            self.leaf = self.glob.rpartition(".")[2]
            self._name = _glob_regex(self.glob)
        elif not callable(pattern) and not isinstance(pattern, re.Pattern):
            raise ProbeError(
                f"{pattern!r} does not say which layers: pass names, globs, re.compile(...) patterns, "
                "module types or predicates."
            )

    def takes(self, candidate: HookPoint) -> bool:
        """Whether the module call or operation itself satisfies the pattern, whatever the element."""
        pattern = self.pattern
        if isinstance(pattern, str):
            if candidate.kind == "operation" and not re.search("[A-Za-z]", self.leaf):
                return False
            return not self.pick and self._names(candidate)
        if isinstance(pattern, re.Pattern):
            return pattern.fullmatch(candidate.name) is not None
        if isinstance(pattern, type):
            return candidate.kind == "output" and isinstance(candidate.module, pattern)
        if isinstance(pattern, nn.Module):
            return candidate.kind == "output" and candidate.module is pattern
        return bool(pattern(candidate))

    def points(self, candidate: HookPoint) -> list[HookPoint]:
        if self.takes(candidate):
            return [candidate]
        if self.pick and isinstance(self.pattern, str) and self._names(candidate):
            return [candidate.picked(self.pick)]
        if candidate.kind == "output":
            own_input = _input_of(candidate)
            if self._names_input(own_input):
                return [own_input]
        return []

    def _names(self, candidate: HookPoint) -> bool:
        if candidate.name == OUTPUT and not candidate.scope:  # the whole model is in no wildcard
            return self.glob == OUTPUT
        return self._name.fullmatch(candidate.name) is not None

    def _names_input(self, point: HookPoint) -> bool:
        if isinstance(self.pattern, str):
            return point.name == self.pattern
        return isinstance(self.pattern, re.Pattern) and self.pattern.fullmatch(point.name) is not None

    def may_hold_operations(self, scope: str, module: nn.Module) -> bool:
        if isinstance(self.pattern, str):
            if self.glob in (INPUT, OUTPUT) or self.leaf in module._modules:  # named: no operation is meant
                return False
            # A glob matches its own text, so this asks whether some name in the scope could match.
            example = re.sub(r"\[(.).*?\]", r"\1", self.leaf)
            named = re.search("[A-Za-z]", self.leaf) is not None
            return named and self._name.fullmatch(f"{scope}.{example}".lstrip(".")) is not None
        return not isinstance(self.pattern, (type, nn.Module))

    def may_want(self, path: str, module: nn.Module) -> bool:
        """Whether some call of this module could satisfy the pattern."""
        if isinstance(self.pattern, type):
            return isinstance(module, self.pattern)
        if isinstance(self.pattern, nn.Module):
            return module is self.pattern
        if not isinstance(self.pattern, str):
            return True
        call = _glob_regex(re.sub(r"_\d+$", "", self.glob))  # `relu_2` is the third call of `relu`
        return (self._name.fullmatch(path) or call.fullmatch(path)) is not None

    def possible(self, modules: dict[str, nn.Module]) -> bool:
        if isinstance(self.pattern, (type, nn.Module)):
            return any(self.may_want(*module) for module in modules.items())
        if not isinstance(self.pattern, str):
            return True
        if self.glob in (INPUT, OUTPUT):
            return True
        if any(path and self.may_want(path, module) for path, module in modules.items()):
            return True
        scopes = [(path, module) for path, module in modules.items() if not _is_primitive(module)]
        return _may_be_operation(self.leaf) and any(self.may_hold_operations(*scope) for scope in scopes)


def as_list(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    """One pattern or several, as several."""
    if isinstance(patterns, (str, re.Pattern, type, nn.Module)) or not isinstance(patterns, Iterable):
        return [patterns]
    return list(patterns)


def _input_of(candidate: HookPoint) -> HookPoint:
    if candidate.name == OUTPUT:
        return HookPoint(INPUT, "input", "", candidate.type, candidate.module)
    return candidate.picked("in")


def _glob_regex(glob: str) -> re.Pattern[str]:
    """`*` and `?` within one part of a dotted name, `**` across parts, `**.` also for no part at all."""
    pieces = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    tokens = re.split(r"(\*\*\.|\*\*|\*|\?|\[[^\]]+\])", glob)
    classes = [t for t in tokens if t.startswith("[") and t.endswith("]")]
    try:
        return re.compile("".join(pieces.get(t, t if t in classes else re.escape(t)) for t in tokens))
    except re.error as error:
        raise ProbeError(f"{glob!r} is no pattern of names: {error}.") from error


def _may_be_operation(leaf: str) -> bool:
    name = re.sub(r"_\d+$", "", leaf)
    if not name.isidentifier():
        return True  # a wildcard: only a forward can tell
    return any(hasattr(place, name) for place in (torch, F, torch.Tensor, operator))


def _is_primitive(module: nn.Module) -> bool:
    """torch's own layers are leaves, as in torchvision: what runs inside them has no name.

    Intercepting functions there would also forbid the fused attention of frozen `nn.Transformer` parts.
    """
    composite = (nn.Sequential, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder)
    layers = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, composite + layers)
