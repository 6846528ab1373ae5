"""Features in what modules take and return: nests of tuples, mappings and dataclasses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from thermoscope.errors import ProbeError
from thermoscope.nearest import the_nearest
from thermoscope.nests import children, leaves

__all__ = ["argument", "described", "element", "strided", "tensors"]


def tensors(value: Any) -> Iterator[torch.Tensor | PackedSequence]:
    """The tensors of real numbers with a batch dimension in a nest."""
    for found in leaves(value, (torch.Tensor, PackedSequence)):
        if isinstance(found, PackedSequence) or (_is_real(found) and found.ndim > 0):
            yield found


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_quantized


def _items(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in children(value).items()}


def element(value: Any, pick: str, batch: int | None = None) -> torch.Tensor | PackedSequence | None:
    """The first features in the element that a pick like `1.hidden_states` names.

    Given the examples in the batch, rather the first that can have a row for each: a block may hand on
    what it has of smaller parts beside them.
    """
    for key in filter(None, pick.split(".")):
        items = _items(value)
        if key not in items:
            raise ProbeError(
                f"the output has no element {key!r} for the pick ':{pick}'; {the_nearest(key, items)}."
            )
        value = items[key]
    found = list(tensors(value))
    suitable = (f for f in found if isinstance(f, PackedSequence) or f.is_nested or batch in f.shape[:2])
    return next(suitable, found[0] if found else None)


def argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], pick: str
) -> torch.Tensor | PackedSequence | None:
    """The first features in the arguments, or in the one that `in.1` or `in.name` names."""
    arguments = {**_items(args), **kwargs}
    return element(arguments, pick.removeprefix("in").removeprefix("."))


def described(value: Any) -> str:
    """What a value is that holds no features, as in `complex64 numbers`."""
    if isinstance(value, torch.Tensor):
        numbers = f"{str(value.dtype).removeprefix('torch.')} numbers"
        return numbers if value.ndim else f"one number ({numbers[:-8]})"
    return "nothing" if value is None else f"a {type(value).__name__}"


def strided(
    value: torch.Tensor | PackedSequence, layer: str
) -> tuple[torch.Tensor | PackedSequence, torch.Tensor | None]:
    """Features as an ordinary tensor without gradients, whatever way they are stored.

    Nested tensors of sequences are padded; which positions (B, T) hold data comes with them.

    Raises:
        ProbeError: for tensors without values: of the meta device, or inside a transformation.
    """
    if isinstance(value, PackedSequence):
        return value, None
    value = value.detach()
    if value.device.type == "meta":
        raise ProbeError(f"layer {layer!r} is on the meta device, where features have no values.")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise ProbeError(
            f"layer {layer!r} runs inside a transformation of torch.func, where features have no values of "
            "their own; probe the module around it."
        )
    if value.is_nested:
        return _padded(value, layer)
    if value.layout != torch.strided:
        return value.to_dense(), None
    return (value.dequantize() if value.is_quantized else value), None


def _padded(value: torch.Tensor, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A nested tensor (B, ragged, C) as (B, T, C), and which positions (B, T) hold data."""
    parts = value.unbind()
    if value.dim() != 3 or len({part.shape[1] for part in parts}) > 1:
        raise ProbeError(
            f"layer {layer!r} gives a nested tensor whose parts are no sequences of vectors of one length, "
            "so its rows cannot be compared; leave it out."
        )
    lengths = torch.tensor([len(part) for part in parts], device=value.device)
    padded = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=value.device) < lengths[:, None]
