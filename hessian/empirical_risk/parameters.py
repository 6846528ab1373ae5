"""Which parameters a vector speaks of, and where in it each of them lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from thermoscope.errors import HessianError
from thermoscope.nearest import nearest

__all__ = ["Tensors", "device_of", "flatten", "select_parameters", "split"]

Tensors = Mapping[str, torch.Tensor]
"""Parameters, or a vector in their shapes, by name."""


def select_parameters(model: nn.Module, patterns: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Parameters by name globs ("fc*", ["layer1.*", "head.weight"]), in the model's order.

    Without patterns: all that require a gradient. A parameter that two modules share is there once, under
    its first name.

    Raises:
        HessianError: if a pattern matches nothing, nothing requires a gradient, or one of them cannot be
            differentiated by.
    """
    named = dict(model.named_parameters())
    if not named:
        raise HessianError("the model has no parameters to differentiate by.")
    if patterns is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise HessianError(
                "no parameter of the model requires a gradient; name the parameters to differentiate by."
            )
    else:
        globs = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(globs, Sequence) or not all(isinstance(pattern, str) for pattern in globs):
            raise HessianError(
                f"parameters is {patterns!r}; give name globs such as ['layer1.*', 'head.weight']."
            )
        if not globs:
            raise HessianError("parameters is an empty list; leave it out for all that require a gradient.")
        names = {name for pattern in globs for name in _matched(pattern, named)}
        chosen = {name: p for name, p in named.items() if name in names}
    for name, p in chosen.items():
        _check(name, p)
    return chosen


def _matched(pattern: str, named: Mapping[str, nn.Parameter]) -> set[str]:
    matched = {name for name in named if fnmatchcase(name, pattern)}
    if not matched:
        near = nearest(pattern, named, count=3, cutoff=0.3, otherwise=3)
        raise HessianError(
            f"no parameter matches {pattern!r}; the nearest names are {', '.join(map(repr, near))}."
        )
    return matched


def _check(name: str, p: nn.Parameter) -> None:
    if is_lazy(p):
        raise HessianError(f"parameter {name!r} has no shape yet; run a batch through the model first.")
    if p.is_meta:
        raise HessianError(
            f"parameter {name!r} is on the meta device, without values; load the weights first."
        )
    if not p.is_floating_point():
        kind = str(p.dtype).removeprefix("torch.")
        raise HessianError(
            f"parameter {name!r} is {kind}; only real floating-point numbers can be differentiated by, so "
            "choose others with parameters=."
        )


def device_of(chosen: Mapping[str, nn.Parameter]) -> torch.device:
    """Where these parameters are.

    Raises:
        HessianError: if they are not all in one place.
    """
    devices = {p.device for p in chosen.values()}
    if len(devices) > 1:
        raise HessianError(
            f"the parameters are on several devices ({', '.join(sorted(map(str, devices)))}); move the model "
            "to one, or choose those of one with parameters=."
        )
    return devices.pop()


def flatten(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """All entries, one tensor behind another, (n,)."""
    return torch.cat([t.reshape(-1).to(dtype) if dtype else t.reshape(-1) for t in tensors.values()])


def split(vector: torch.Tensor, layout: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The parts of a vector (n,), views in the parameters' shapes."""
    sizes = [torch.Size(shape).numel() for shape in layout.values()]
    parts = vector.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)}
