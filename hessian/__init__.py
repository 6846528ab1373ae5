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
from .products.choose import MODES, ModeChoice
from .products.curvature import CurvatureOperator
from .products.forward_reverse import ForwardReverse
from .products.functional_hessian import FunctionalHessian
from .products.gauss_newton import GaussNewton
from .products.hessian import Hessian
from .products.linearized import Linearized
from .products.matrix import CurvatureMatrix, LocalLoss
from .products.mode import ProductMode
from .products.retained import Retained
from .products.reverse_reverse import ReverseReverse
from .products.symmetric import SymmetricOperator, as_operator
from .spectrum.density import Density, Quadrature, spectral_density
from .spectrum.eigenpairs import extreme_eigenpairs
from .spectrum.eigsh import Eigsh
from .spectrum.lanczos import Lanczos
from .spectrum.results import Eigenpair, MissedCheck, Spectrum
from .spectrum.solver import EigenProblem, EigenSolution, EigenSolver
from .spectrum.trace import Estimate, frobenius_norm, trace

__all__ = [
    # a loss over fixed data
    "Loss",
    "fixed_subset",
    "Team",
    "HessianError",
    # its curvature matrices; `CurvatureMatrix` is for one of your own, made from a `LocalLoss`
    "CurvatureMatrix",
    "Hessian",
    "GaussNewton",
    "FunctionalHessian",
    "LocalLoss",
    # ways to compute their products; `ProductMode` is for one of your own
    "ProductMode",
    "MODES",
    "Linearized",
    "Retained",
    "ReverseReverse",
    "ForwardReverse",
    "ModeChoice",
    # matrices known by their products
    "SymmetricOperator",
    "CurvatureOperator",
    "as_operator",
    # eigenpairs
    "extreme_eigenpairs",
    "Spectrum",
    "Eigenpair",
    "MissedCheck",
    # solvers; `EigenSolver` is for one of your own, which turns an `EigenProblem` into an `EigenSolution`
    "EigenSolver",
    "Lanczos",
    "Eigsh",
    "EigenProblem",
    "EigenSolution",
    # the whole spectrum
    "spectral_density",
    "Density",
    "Quadrature",
    "trace",
    "frobenius_norm",
    "Estimate",
    # what eigenpairs say: the loss along them, and spectra side by side
    "line_search",
    "LineSearch",
    "slice_2d",
    "Slice",
    "compare",
    "Comparison",
    "ComparisonEnd",
    "gradient_overlap",
    "GradientOverlap",
    "GradientOverlapEnd",
    # during training
    "EigenTracker",
    "TrackedPair",
    "NegativeCurvature",
]
