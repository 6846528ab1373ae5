"""Targets: what a probe predicts, with its loss, the loss's gradient and its errors."""

from .by_name import as_targets
from .classification import Classification
from .contract import Target
from .multi_label import MultiLabel
from .regression import Regression

__all__ = [
    # the contract
    "Target",
    # its members
    "Classification",
    "MultiLabel",
    "Regression",
    # as they are asked for
    "as_targets",
]
