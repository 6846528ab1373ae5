"""Memory for the features of training forwards, kept from one to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

__all__ = ["Buffers", "stacked"]


class Buffers:
    """One float32 tensor per layer, those of layers in a group lying one behind another.

    Fresh pages for a large tensor cost more than copying into it. And what lies together need not be copied
    once more to be one tensor: see `stacked`.
    """

    def __init__(self) -> None:
        self._arranged: list[Sequence[str]] = []
        self._groups: dict[str, Sequence[str]] = {}
        self._kept: dict[str, torch.Tensor] = {}

    def arrange(self, groups: Iterable[Sequence[str]]) -> None:
        """Which layers' features shall lie together from now on."""
        groups = list(groups)
        if groups != self._arranged:
            self._arranged, self._kept = groups, {}
            self._groups = {layer: group for group in groups for layer in group}

    def of(self, layer: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """A layer's memory, uninitialised or with its last features."""
        kept = self._kept.get(layer)
        if kept is None or kept.shape != shape or kept.device != device:
            group = self._groups.get(layer, (layer,))
            together = torch.empty(len(group), *shape, dtype=torch.float32, device=device)
            self._kept.update(zip(group, together.unbind(), strict=True))
            kept = self._kept[layer]
        return kept


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Contiguous tensors of one shape as one tensor, without copying where they lie one behind another."""
    first, last = parts[0], parts[-1]
    step = first.numel() * first.element_size()
    start = first.data_ptr()
    if all(part.data_ptr() == start + i * step for i, part in enumerate(parts)) and (
        first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    ):
        return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))
    return torch.stack(list(parts))
