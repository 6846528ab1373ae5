"""Early stopping: each probe ends at its own best validation loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .bank import Bank

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Keeps every probe's weights at its lowest validation loss, and gives it up after `patience` rounds
    without a lower one. What a probe does after that does not count.
    """

    def __init__(self, bank: Bank, patience: int):
        self._bank, self._patience = bank, patience
        self._best = [
            _Best(torch.full_like(g.score, float("inf")), torch.zeros_like(g.score), *g.folded())
            for g in bank.groups
        ]

    def update(self, losses: Mapping[tuple[str, str], torch.Tensor]) -> bool:
        """Take in validation losses, (lrs,) per (layer, target); True when every probe has stopped."""
        widths = torch.tensor([target.width for target in self._bank.targets.values()] * len(self._bank.lrs))
        stopped = True
        for group, best in zip(self._bank.groups, self._best, strict=True):
            rows = [torch.stack([losses[layer, t] for t in self._bank.targets], 1) for layer in group.layers]
            loss = torch.stack(rows).flatten(1).to(best.loss)  # (G, lrs x targets), as in `score`
            better = (loss < best.loss) & (best.since < self._patience)
            columns = better.repeat_interleave(widths.to(better.device), dim=1)
            weight, bias = group.folded()
            best.loss = torch.where(better, loss, best.loss)
            best.since = torch.where(better, 0, best.since + 1)
            best.weight = torch.where(columns[..., None], weight, best.weight)
            best.bias = torch.where(columns, bias, best.bias)
            stopped = stopped and bool((best.since >= self._patience).all())
        return stopped

    def restore(self) -> None:
        """Give every probe its best weights back, and its best validation loss as score."""
        for group, best in zip(self._bank.groups, self._best, strict=True):
            group.unfold(best.weight, best.bias)
            group.score.copy_(best.loss)


@dataclass
class _Best:
    loss: torch.Tensor  # (G, lrs x targets)
    since: torch.Tensor  # rounds since then
    weight: torch.Tensor  # folded, (G, outputs, size)
    bias: torch.Tensor
