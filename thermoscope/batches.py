"""Batches in the usual forms: where the labels are, how a model is called with the rest, what it answers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import ThermoscopeError

__all__ = ["LABEL_KEYS", "as_tensor", "label_key", "logits_of", "named_logits", "output_for"]

LABEL_KEYS = ("labels", "label", "y", "targets", "target")


def label_key(batch: Any) -> Any:
    """Where a batch has its labels: second in (x, y, ...), or the first of `LABEL_KEYS` that a dict has.

    None for a batch of another form.
    """
    if isinstance(batch, Mapping):
        return next((key for key in LABEL_KEYS if key in batch), None)
    return 1 if isinstance(batch, Sequence) and len(batch) >= 2 else None


def output_for(model: nn.Module, batch: Any, error: type[ThermoscopeError], remedy: str) -> Any:
    """What the model makes of a batch that has labels, which it does not get.

    Args:
        model: gets the first element of a sequence, or all other entries of a dict by name.
        batch: of a form that `label_key` knows.
        error: raised for a dict whose entries the model's forward does not take by these names.
        remedy: the end of its sentence.
    """
    if not isinstance(batch, Mapping):
        return model(batch[0])
    key = label_key(batch)
    inputs = {name: value for name, value in batch.items() if name != key}
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as reason:
        raise error(
            f"the model cannot be called with a batch's entries {', '.join(map(repr, inputs))} ({reason}); "
            f"{remedy}."
        ) from reason
    except ValueError:  # a forward without a signature
        pass
    return model(**inputs)


def named_logits(output: Any) -> Any:
    """What an output calls its logits, or None."""
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def logits_of(output: Any) -> torch.Tensor | None:
    """The tensor that is a model's answer: its output, what the output calls logits, or a tuple's first."""
    if isinstance(output, torch.Tensor):
        return output
    logits = named_logits(output)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    return logits if isinstance(logits, torch.Tensor) else None


def as_tensor(array: Any) -> Any:
    """An array of numbers, or one number, of NumPy as a tensor with memory of its own; any other as it is."""
    if array.dtype.kind not in "biufc":  # words, objects
        return array
    # A copy that torch may write to, in this machine's order of bytes.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
