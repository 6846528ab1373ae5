"""The convex fit: from features of many layers to probes at their certified optimum."""

from .all_layers import fit_probes
from .evaluation import evaluate_probes
from .features import ArrayFeatures, FeatureTable, Rows
from .fitted import FittedProbes, LinearClassifier, PathPoint
from .views import with_labels

__all__ = [
    "ArrayFeatures",
    "FeatureTable",
    "FittedProbes",
    "LinearClassifier",
    "PathPoint",
    "Rows",
    "evaluate_probes",
    "fit_probes",
    "with_labels",
]
