"""Is it the layer, or the probe? What to hold a probe's error against, from the same features.

Every control takes its splits by name, so that none can stand for another: `train` is fitted to, `valid`
chooses, `test` is only measured. Another way to read a layer out is a `Readout`.
"""

from .code_length import CodeLength, code_length
from .contract import Readout, read_out
from .learning_curves import LearningCurve, learning_curve
from .neighbours import nearest_neighbours
from .random_labels import Selectivity, selectivity
from .ridge import ridge

__all__ = [
    # read-outs: the contract, what measures them, and its members
    "Readout",
    "nearest_neighbours",
    "read_out",
    "ridge",
    # other questions to the same features
    "CodeLength",
    "LearningCurve",
    "Selectivity",
    "code_length",
    "learning_curve",
    "selectivity",
]
