"""Is it the layer, or the probe? What to hold a probe's error against, from the same features."""

from .code_length import CodeLength, code_length
from .learning_curves import LearningCurve, learning_curve
from .random_labels import Selectivity, selectivity
from .readouts import nearest_neighbours, ridge

__all__ = [
    "CodeLength",
    "LearningCurve",
    "Selectivity",
    "code_length",
    "learning_curve",
    "nearest_neighbours",
    "ridge",
    "selectivity",
]
