"""The density of the whole spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from hessian import Density, Quadrature

from ..figures.curvature import density_figure
from .family import Drawing, Family, Occasion, register

__all__ = ["DensityFamily"]


class DensityFamily(Family[Density]):
    """Tags: `hessian/density/trace` and `hessian/density/negative mass`, a fraction of all eigenvalues."""

    kind = Density

    def read(self, line: Mapping[str, Any]) -> Density:
        """Lists are arrays again."""
        rules = tuple(
            Quadrature(np.array(rule["nodes"]), np.array(rule["weights"]), rule["exact"])
            for rule in line["quadratures"]
        )
        arrays = {key: np.array(line[key], np.float64) for key in ("grid", "density", "standard_error")}
        return Density(**{**line, **arrays, "quadratures": rules})

    def scalars(self, result: Density, name: str) -> dict[str, float]:
        """What the density adds to the extreme eigenvalues."""
        return {
            "hessian/density/trace": result.trace.value,
            "hessian/density/negative mass": result.negative_mass.value,
        }

    def drawings(self, result: Density, at: Occasion[Density]) -> Iterator[Drawing]:
        """The density on a logarithmic scale."""
        figure = density_figure(result, title=f"{at.title}: spectral density")
        yield Drawing("hessian/density", "hessian_density", figure)

    def frame(self, result: Density) -> pd.DataFrame:
        """One row per point of the grid: the density per unit of eigenvalue, and its standard error."""
        columns = {"eigenvalue": result.grid, "density": result.density}
        return pd.DataFrame({**columns, "standard_error": result.standard_error})


register(DensityFamily())
