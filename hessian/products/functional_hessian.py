"""The functional Hessian: what the curvature of the model itself adds to the Hessian of the loss."""

from __future__ import annotations

from dataclasses import dataclass

from ..empirical_risk.parameters import Tensors
from .gauss_newton import GaussNewton
from .hessian import Hessian
from .matrix import CurvatureMatrix, LocalLoss, Multiply

__all__ = ["FunctionalHessian"]

_H, _G = Hessian(), GaussNewton()


@dataclass(frozen=True)
class FunctionalHessian(CurvatureMatrix):
    """H - G, the sum of the outputs' Hessians weighted by the loss's derivatives (Singh et al. 2021)."""

    name = "functional_hessian"
    may_vanish = True

    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        """H v - G v."""
        return _difference(_H.product(loss, vector), _G.product(loss, vector))

    def linear_map(self, loss: LocalLoss) -> Multiply:
        """H v - G v, on the graphs of both."""
        hessian, gauss_newton = _H.linear_map(loss), _G.linear_map(loss)
        return lambda vector: _difference(hessian(vector), gauss_newton(vector))


def _difference(a: Tensors, b: Tensors) -> Tensors:
    return {name: a[name] - b[name] for name in a}
