"""Features in what modules take and return: nests of tuples, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .errors import ProbeError
from .selection import nearest

__all__ = ["argument", "element", "tensors"]


def tensors(value: Any) -> Iterator[torch.Tensor | PackedSequence]:
    """The floating-point tensors with a batch dimension in a nest of tuples, mappings and dataclasses."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.ndim > 0:
            yield value
    elif isinstance(value, PackedSequence):
        yield value
    else:
        for item in _items(value).values():
            yield from tensors(item)


def _items(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return {str(i): item for i, item in enumerate(value)}
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return {}


def element(value: Any, pick: str, batch: int | None = None) -> torch.Tensor | PackedSequence | None:
    """The first features in the element that a pick like `1.hidden_states` names.

    Given the examples in the batch, rather the first that can have a row for each: a block may hand on
    what it has of smaller parts beside them.
    """
    for key in filter(None, pick.split(".")):
        items = _items(value)
        if key not in items:
            raise ProbeError(
                f"the output has no element {key!r} for the pick ':{pick}'; {nearest(key, list(items))}."
            )
        value = items[key]
    found = list(tensors(value))
    suitable = (f for f in found if isinstance(f, PackedSequence) or batch in f.shape[:2])
    return next(suitable, found[0] if found else None)


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], pick: str
) -> torch.Tensor | PackedSequence | None:
    """The first features in the arguments, or in the one that `in.1` or `in.name` names."""
    arguments = {**_items(args), **kwargs}
    return element(arguments, pick.removeprefix("in").removeprefix("."))
