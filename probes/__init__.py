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
    Readout,
    Selectivity,
    code_length,
    learning_curve,
    nearest_neighbours,
    read_out,
    ridge,
    selectivity,
)
from .features.hook_points import hook_points
from .features.layout import Features
from .features.patterns import HookPoint, Pattern, Selection
from .features.reduction import Auto, Flatten, Pool, Positions, Project, Reduction, Subset, Token
from .fit import (
    ArrayFeatures,
    FeatureTable,
    FittedProbes,
    LinearClassifier,
    PathPoint,
    Rows,
    evaluate_probes,
    fit_probes,
    with_labels,
)
from .probe_set import ProbeSet
from .results import ProbeResult, Reading, Reference
from .store import Estimate, FeatureStore
from .targets import Classification, MultiLabel, Regression, Target
from .user_model import default_forward

__all__ = [
    # probes that train along with a model
    "ProbeSet",
    # what they say
    "ProbeResult",
    "Reading",
    "Reference",
    # which layers
    "HookPoint",
    "Pattern",
    "Selection",
    "hook_points",
    # how features become few numbers: the contract, what it is given, and its members
    "Reduction",
    "Features",
    "Auto",
    "Flatten",
    "Pool",
    "Positions",
    "Project",
    "Subset",
    "Token",
    # what is predicted: the contract and its members
    "Target",
    "Classification",
    "MultiLabel",
    "Regression",
    # features on disk or in arrays
    "ArrayFeatures",
    "Estimate",
    "FeatureStore",
    "FeatureTable",
    "with_labels",
    # probes at their optimum
    "FittedProbes",
    "LinearClassifier",
    "PathPoint",
    "evaluate_probes",
    "fit_probes",
    # is it the layer, or the probe? other read-outs: the contract, what it is given, and its members
    "Readout",
    "Rows",
    "read_out",
    "nearest_neighbours",
    "ridge",
    # and other questions to the same features
    "CodeLength",
    "LearningCurve",
    "Selectivity",
    "code_length",
    "learning_curve",
    "selectivity",
    # how a model is run where no forward= is given
    "default_forward",
    # what goes wrong
    "ProbeError",
]
