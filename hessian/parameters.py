"""Which parameters a vector speaks of, and where in it each of them lies."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from .errors import HessianError

__all__ = ["flatten", "select_parameters", "split"]


def select_parameters(model: nn.Module, patterns: str | Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Parameters by name globs ("fc*", ["layer1.*", "head.weight"]), in the model's order.

    Without patterns: all that require a gradient. A parameter that two modules share is there once, under
    its first name.

    Raises:
        HessianError: if a pattern matches nothing, or nothing requires a gradient.
    """
    named = dict(model.named_parameters())
    if patterns is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise HessianError(
                "no parameter of the model requires a gradient; name the parameters to differentiate by."
            )
        return chosen
    names: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {name for name in named if fnmatchcase(name, pattern)}
        if not matched:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.3) or list(named)[:3]
            raise HessianError(
                f"no parameter matches {pattern!r}; the nearest names are {', '.join(map(repr, near))}."
            )
        names |= matched
    return {name: p for name, p in named.items() if name in names}


def flatten(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """All entries, one tensor behind another, (n,)."""
    return torch.cat([t.reshape(-1).to(dtype) if dtype else t.reshape(-1) for t in tensors.values()])


def split(vector: torch.Tensor, layout: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The parts of a vector (n,), views in the parameters' shapes."""
    sizes = [torch.Size(shape).numel() for shape in layout.values()]
    parts = vector.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(layout.items(), parts, strict=True)}
