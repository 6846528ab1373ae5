"""How the loss bends: the Hessian of the full-data loss.

from hessian import Loss, extreme_eigenpairs, line_search

loss = Loss(model, F.cross_entropy, data)                    # full training set or a fixed subset
spectrum = extreme_eigenpairs(loss.hessian(), largest=20, smallest=3)   # values, vectors, residuals
search = line_search(loss, spectrum.smallest[0])             # L along v, quadratic model, alpha*
"""

from thermoscope.errors import HessianError

from .compare import Comparison, ComparisonEnd, GradientOverlap, GradientOverlapEnd, compare, gradient_overlap
from .distributed import Team
from .empirical_risk.data import fixed_subset
from .experimental.negative_curvature import NegativeCurvature
from .experimental.tracker import EigenTracker, TrackedPair
from .line_search import LineSearch, Slice, line_search, slice_2d
from .loss import Loss
from .products.choose import Choice
from .products.curvature import CurvatureOperator
from .products.matrices import MODES, Mode
from .products.symmetric import SymmetricOperator, as_operator
from .spectrum.density import Density, Quadrature, spectral_density
from .spectrum.eigenpairs import extreme_eigenpairs
from .spectrum.results import Eigenpair, MissedCheck, Spectrum
from .spectrum.trace import Estimate, frobenius_norm, trace

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
