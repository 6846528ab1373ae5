"""What each layer knows: linear classifier probes on any PyTorch model.

from probes import ProbeSet

with ProbeSet(model, layers=["layer*.*", "layer1.0.add"], num_classes=1000) as probes:
    for x, y in loader:
        ...                                      # your training step, unchanged
        probes.step(y)                           # every probe advances on the features just seen
    result = probes.evaluate(valid_loader)       # error, loss and standard errors per layer
"""

from thermoscope.errors import ProbeError

from .controls import (
    CodeLength,
    LearningCurve,
    Selectivity,
    code_length,
    learning_curve,
    nearest_neighbours,
    ridge,
    selectivity,
)
from .features.hook_points import hook_points
from .features.patterns import HookPoint, Pattern, Selection
from .features.reduction import (
    Auto,
    Flatten,
    Pool,
    Positions,
    Project,
    Reduction,
    Subset,
    Token,
    parse_reduction,
)
from .fit import (
    ArrayFeatures,
    FeatureTable,
    FittedProbes,
    LinearClassifier,
    PathPoint,
    evaluate_probes,
    fit_probes,
    with_labels,
)
from .probe_set import ProbeSet
from .results import ProbeResult, Reading, Reference
from .store import Estimate, FeatureStore
from .streams import preserved_random_state, random_subset
from .targets import Classification, MultiLabel, Regression, Target
from .user_model import default_forward

__all__ = [
    "ArrayFeatures",
    "Auto",
    "Classification",
    "CodeLength",
    "Estimate",
    "FeatureStore",
    "FeatureTable",
    "FittedProbes",
    "Flatten",
    "HookPoint",
    "LearningCurve",
    "LinearClassifier",
    "MultiLabel",
    "PathPoint",
    "Pattern",
    "Pool",
    "Positions",
    "ProbeError",
    "ProbeResult",
    "ProbeSet",
    "Project",
    "Reading",
    "Reduction",
    "Reference",
    "Regression",
    "Selection",
    "Selectivity",
    "Subset",
    "Target",
    "Token",
    "code_length",
    "default_forward",
    "evaluate_probes",
    "fit_probes",
    "hook_points",
    "learning_curve",
    "nearest_neighbours",
    "parse_reduction",
    "preserved_random_state",
    "random_subset",
    "ridge",
    "selectivity",
    "with_labels",
]
