"""Labels of one batch, in the arrangement that each probe needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from thermoscope.errors import ProbeError

from ..targets import Target

__all__ = ["Labels"]


class Labels:
    """The label sets of one batch, checked.

    Attributes:
        values: per target (B, ...): class numbers per example or per position, or rows of numbers.
        examples: B.
        fault: 0-d bool tensor: a label is no label. On the CPU that is refused at once instead.
    """

    def __init__(
        self,
        y: torch.Tensor | Mapping[str, torch.Tensor],
        targets: Mapping[str, Target],
        device: torch.device,
    ):
        given = dict(y) if isinstance(y, Mapping) else {next(iter(targets)): y}
        if set(given) != set(targets):
            raise ProbeError(f"labels were given for {sorted(given)}, but the targets are {sorted(targets)}.")
        checked = {name: target.check(_as_tensor(given[name], name)) for name, target in targets.items()}
        lengths = {name: len(value) for name, value in checked.items()}
        if len(set(lengths.values())) > 1:
            raise ProbeError(f"the label sets of one batch differ in length: {lengths}.")
        self._targets = dict(targets)
        self.values = {name: value.to(device, non_blocking=True) for name, value in checked.items()}
        self.examples = next(iter(lengths.values()))
        self.fault = torch.zeros((), dtype=torch.bool, device=device)
        if device.type == "cuda":
            for name, target in targets.items():
                self.fault |= target.faulty(self.values[name])
        self._valid: dict[tuple[int, ...], torch.Tensor] = {}
        self._rows: dict[tuple[str, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}

    def note_valid(self, valid: torch.Tensor) -> None:
        """Positions (B, T) of padded sequences that hold data; the others do not count."""
        self._valid[tuple(valid.shape[1:])] = valid

    def rows(self, name: str, positions: tuple[int, ...], layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (rows, ...) of a target for features with these positions, and which rows count (rows,).

        Labels given at another resolution than a layer's map are sampled at the nearest position.

        Raises:
            ProbeError: if the labels have positions and the features have none, or the reverse.
        """
        if (name, positions) not in self._rows:
            target, y = self._targets[name], self.values[name]
            given = y.shape[1 : y.ndim - target.label_dims]
            if len(given) != len(positions):
                raise ProbeError(_disagreement(layer, tuple(given), positions, target))
            if len(positions) == 1 and given != positions:
                raise ProbeError(
                    f"layer {layer!r} has {positions[0]} tokens per sequence, the labels {given[0]}."
                )
            for dim, (size, wanted) in enumerate(zip(given, positions, strict=True), start=1):
                if size != wanted:
                    middles = torch.arange(wanted, dtype=torch.float64, device=y.device) + 0.5
                    nearest = (middles * (size / wanted)).long()
                    y = y.index_select(dim, nearest)
            counted = target.counted(y)
            if positions in self._valid:
                counted = counted & self._valid[positions].to(counted.device)
            self._rows[name, positions] = (y.flatten(0, len(positions)), counted.flatten())
        return self._rows[name, positions]


def _as_tensor(y: Any, name: str) -> torch.Tensor:
    """Labels as an ordinary tensor without gradients."""
    try:
        labels = torch.as_tensor(y).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ProbeError(
            f"labels {name!r} are a {type(y).__name__} that holds no numbers; give a tensor with one label "
            "per example of the batch."
        ) from None
    if not labels.ndim:
        raise ProbeError(f"labels {name!r} are one number; give one label per example of the batch.")
    if labels.device.type == "meta":
        raise ProbeError(f"labels {name!r} are on the meta device, where they have no values.")
    return labels if labels.layout == torch.strided else labels.to_dense()


def _disagreement(layer: str, given: tuple[int, ...], positions: tuple[int, ...], target: Target) -> str:
    if not positions and given == (1,):
        return "labels have shape (B, 1), but one per example means shape (B,): pass y.squeeze(1)."
    hint = None if positions else target.shape_hint(given)
    if hint is not None:
        return hint
    if positions:
        return (
            f"layer {layer!r} gives one row per position {positions}, but there is one label per "
            f"{'example' if not given else f'position {given}'}; reduce the layer to one row per example."
        )
    return (
        f"there is a label for each of {'x'.join(map(str, given))} positions, but layer {layer!r} gives one "
        "row per example; use reduce='positions' to keep its positions."
    )
