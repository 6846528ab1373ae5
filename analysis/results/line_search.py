"""Line searches along eigenvectors; the name of each is its end and rank, such as "SA 1"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from hessian import LineSearch, Spectrum

from ..figures.curvature import line_search_figure
from .family import Drawing, Family, Occasion, register

__all__ = ["LineSearchFamily", "curvature"]


class LineSearchFamily(Family[LineSearch]):
    """Tags: `hessian/search/decrease/<name>`, likewise `slope`, `slope doubt` and, where known, `alpha`."""

    kind = LineSearch

    def read(self, line: Mapping[str, Any]) -> LineSearch:
        """An earlier version did not say how well it knew the direction: so it is not known."""
        arrays = {key: np.array(line[key], np.float64) for key in ("alphas", "losses")}
        return LineSearch(**{"angle": None, "slope_doubt": np.nan, **line, **arrays})

    def scalars(self, result: LineSearch, name: str) -> dict[str, float]:
        """The best decrease and the slope, and the best step size if the direction is known well enough."""
        found = {"decrease": result.decrease, "slope": result.slope, "slope doubt": result.slope_doubt}
        if result.determined:
            found["alpha"] = result.alpha_best
        return {f"hessian/search/{key}/{name}": value for key, value in found.items()}

    def drawings(self, result: LineSearch, at: Occasion[LineSearch]) -> Iterator[Drawing]:
        """The loss along the direction, and the quadratic model."""
        tag = at.name.replace(" ", "") or "direction"
        figure = line_search_figure(result, title=f"{at.title}: {at.name}")
        yield Drawing(f"hessian/line search/{tag}", f"hessian_line_search_{tag}", figure)

    def frame(self, result: LineSearch) -> pd.DataFrame:
        """One row per step size: the loss there, and what the quadratic model says."""
        quadratic = result.quadratic(result.alphas)
        return pd.DataFrame({"alpha": result.alphas, "loss": result.losses, "quadratic": quadratic})


register(LineSearchFamily())


def curvature(
    spectra: Mapping[int, Spectrum], searches: Mapping[tuple[int, str], LineSearch] | None = None
) -> pd.DataFrame:
    """One row per step: both extreme eigenvalues, and what line searches along their vectors found.

    `residual` is the largest of the step's pairs, as a share of the spectrum's width; `1/alpha*` the inverse
    of the best step size, to be compared with the eigenvalue. What is known to worse than 1% has its doubt
    beside it: a residual, or what the angle of the vector leaves open; or it is not determined.
    """
    rows = []
    for step, spectrum in spectra.items():
        row = {"step": str(step)}
        for end, pairs in (("LA 1", spectrum.largest), ("SA 1", spectrum.smallest)):
            if pairs:
                row[f"{end} λ"] = _with_doubt(pairs[0].value, pairs[0].residual)
            search = (searches or {}).get((step, end))
            if search is not None:
                inverse = 1 / search.alpha_best if search.alpha_best else float("nan")
                doubt = search.alpha_doubt * inverse**2 if search.determined else float("inf")
                row[f"{end} 1/α*"] = _with_doubt(inverse, doubt)
                row[f"{end} decrease"] = f"{search.decrease:.4g}" if search.determined else "not determined"
        row["residual"] = f"{max(pair.residual for pair in spectrum.pairs) / (spectrum.width or 1):.4g}"
        row["products"], row["seconds"] = str(spectrum.products), f"{spectrum.seconds:.1f}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("step").fillna("")


def _with_doubt(value: float, doubt: float) -> str:
    if doubt == float("inf"):
        return "not determined"
    return f"{value:.4g}" if doubt <= 0.01 * abs(value) else f"{value:.4g} ± {doubt:.2g}"
