"""The label sets of a set of probes, by name."""

from __future__ import annotations

from collections.abc import Mapping

from thermoscope.errors import ProbeError

from .classification import Classification
from .contract import Target

__all__ = ["as_targets"]


def as_targets(num_classes: int | None, targets: Target | Mapping[str, Target] | None) -> dict[str, Target]:
    """The label sets by name; a single one is called `"y"`."""
    if (num_classes is None) == (targets is None):
        raise ProbeError("say what the probes predict: either num_classes=10 or targets=..., not both.")
    if num_classes is not None:
        return {"y": Classification(num_classes)}
    named = dict(targets) if isinstance(targets, Mapping) else {"y": targets}
    if not named:
        raise ProbeError("targets={} names no label set.")
    for target in named.values():
        if not isinstance(target, Target):
            raise ProbeError(
                f"targets={target!r} is no target; give Classification(10), MultiLabel(5) or Regression(), "
                "or several by name."
            )
    return named  # type: ignore[return-value]  # just checked
