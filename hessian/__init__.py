"""How the loss bends: the Hessian of the full-data loss.

from hessian import Loss, extreme_eigenpairs, line_search

loss = Loss(model, F.cross_entropy, data)                    # full training set or a fixed subset
spectrum = extreme_eigenpairs(loss.hessian(), largest=20, smallest=3)   # values, vectors, residuals
search = line_search(loss, spectrum.smallest[0])             # L along v, quadratic model, alpha*
"""

from .compare import Comparison, ComparisonEnd, GradientOverlap, GradientOverlapEnd, compare, gradient_overlap
from .curvature import CurvatureOperator
from .data import fixed_subset
from .density import Density, Quadrature, spectral_density
from .eigenpairs import extreme_eigenpairs
from .errors import HessianError
from .hvp import MODES, Mode
from .line_search import LineSearch, Slice, line_search, slice_2d
from .loss import Loss
from .methods import Choice
from .operator import SymmetricOperator, as_operator
from .optimizer import NegativeCurvature
from .results import Eigenpair, MissedCheck, Spectrum
from .team import Team
from .trace import Estimate, frobenius_norm, trace
from .tracker import EigenTracker, TrackedPair

__all__ = [
    "MODES",
    "Choice",
    "Comparison",
    "ComparisonEnd",
    "CurvatureOperator",
    "Density",
    "EigenTracker",
    "Eigenpair",
    "Estimate",
    "GradientOverlap",
    "GradientOverlapEnd",
    "HessianError",
    "LineSearch",
    "Loss",
    "MissedCheck",
    "Mode",
    "NegativeCurvature",
    "Quadrature",
    "Slice",
    "Spectrum",
    "SymmetricOperator",
    "Team",
    "TrackedPair",
    "as_operator",
    "compare",
    "extreme_eigenpairs",
    "fixed_subset",
    "frobenius_norm",
    "gradient_overlap",
    "line_search",
    "slice_2d",
    "spectral_density",
    "trace",
]
