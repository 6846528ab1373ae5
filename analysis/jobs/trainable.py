"""What the reference loop can train: models that return logits, examples with a class number."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import default_collate

from probes.user_model import device_of
from thermoscope.batches import logits_of
from thermoscope.errors import AnalysisError, reason
from thermoscope.random_state import preserved_random_state

from ..sources.seeded_batches import SeededBatches

__all__ = ["require_trainable", "training_loss"]

_AUXILIARY_WEIGHT = 0.3  # of auxiliary heads' losses, as for Inception and GoogLeNet


def training_loss(output: Any, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits, and with less weight of auxiliary heads' logits in a tuple.

    Raises:
        AnalysisError: for an output without logits.
    """
    main, *auxiliary = _logits(output)
    loss = F.cross_entropy(main, y)
    for logits in auxiliary:
        loss = loss + _AUXILIARY_WEIGHT * F.cross_entropy(logits, y)
    return loss


def _logits(output: Any) -> list[torch.Tensor]:
    """The model's answer first, and those of auxiliary heads."""
    if isinstance(output, (tuple, list)):
        found = [part for part in output if isinstance(part, torch.Tensor)]
    else:
        main = logits_of(output)
        found = [] if main is None else [main]
    if not found:
        raise AnalysisError(
            f"the model returns a {type(output).__name__} without logits; let it return a tensor of one row "
            "per example and one column per class, alone, first in a tuple, or called logits."
        )
    return found


def require_trainable(model: nn.Module, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Refuse models and examples that cannot be trained before anything long begins.

    Returns:
        A batch of two examples, on the model's device.

    Raises:
        AnalysisError: saying what is wrong with them.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AnalysisError("the model has no parameters to train: it has none, or all are frozen.")
    batch = SeededBatches(split).__getitems__(range(min(2, len(split))))
    try:
        images, labels = default_collate(batch)
        x: torch.Tensor = images.to(device_of(model))
        y: torch.Tensor = labels.to(device_of(model))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise AnalysisError(
            "an example must be a tensor, of the same shape as the others, and a class number: (x, y)."
        ) from error
    try:
        with preserved_random_state(), torch.enable_grad():
            output = model.eval()(x)
    except Exception as error:  # whatever the user's own forward raises
        why = reason(error) or type(error).__name__
        raise AnalysisError(
            f"the model cannot take images of shape {tuple(x.shape[1:])}: {why.rstrip('.')}; --rgb gives "
            "three channels and --image-size another size."
        ) from error
    main, *_ = _logits(output)
    try:
        loss = F.cross_entropy(main, y)
    except (RuntimeError, IndexError, ValueError) as error:
        raise AnalysisError(
            f"the cross-entropy wants logits (examples, classes) and class numbers; the model returns "
            f"{tuple(main.shape)} and the labels are {tuple(y.shape)} of {y.dtype}."
        ) from error
    if not loss.requires_grad:
        raise AnalysisError(
            "no gradient reaches the model's parameters: its forward detaches what it returns."
        )
    return x, y
