"""Nests: what lies in tuples, lists, mappings and dataclasses, which may hold each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

__all__ = ["Kind", "children", "leaves", "mapped"]

Kind: TypeAlias = "type | tuple[type, ...]"


def children(nest: Any) -> dict[Any, Any]:
    """What a nest holds, by key, index or name of the field; nothing for what is not a nest."""
    if isinstance(nest, Mapping):
        return dict(nest.items())
    if isinstance(nest, (tuple, list)):
        return dict(enumerate(nest))
    if is_dataclass(nest) and not isinstance(nest, type):
        return {f.name: getattr(nest, f.name) for f in fields(nest) if hasattr(nest, f.name)}
    return {}


def leaves(nest: Any, kind: Kind, around: tuple[int, ...] = ()) -> Iterator[Any]:
    """The objects of a kind in a nest, in order; one that is itself a nest is not opened.

    So `PackedSequence`, a named tuple, is one object where it is among the kinds, and four where it is not.
    """
    if isinstance(nest, kind):
        yield nest
    elif id(nest) not in around:  # a nest may hold itself
        for child in children(nest).values():
            yield from leaves(child, kind, (*around, id(nest)))


def mapped(nest: Any, kind: Kind, change: Callable[[Any], Any]) -> Any:
    """The nest with each object of a kind changed, in the order of `leaves`. A mapping becomes a dict."""
    if isinstance(nest, kind):
        return change(nest)
    is_plain = isinstance(nest, (Mapping, tuple, list))
    if not is_plain and next(leaves(nest, kind), None) is None:
        return nest
    changed = {key: mapped(child, kind, change) for key, child in children(nest).items()}
    if isinstance(nest, Mapping):
        return changed
    if is_plain:
        parts = list(changed.values())
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    twin = copy.copy(nest)
    for name, child in changed.items():
        object.__setattr__(twin, name, child)  # also where the dataclass is frozen
    return twin
