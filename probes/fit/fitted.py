"""What a convex fit returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from thermoscope.errors import ProbeError

from ..results import ProbeResult

__all__ = ["FittedProbes", "LinearClassifier", "PathPoint"]


@dataclass(frozen=True)
class LinearClassifier:
    """Class log-probabilities log softmax(W (x - mean) / scale + b) of features x.

    Attributes:
        weight: W, float64, shape (C, size).
        bias: b, shape (C,); minus infinity for a class that the training rows do not have.
        mean: of the training features, shape (size,).
        scale: their standard deviation; 1 for a feature that was constant.
    """

    weight: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]

    def predict_log_proba(self, features: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Log-probabilities (n, C), nats, of features (n, size).

        Raises:
            ProbeError: if the features have another size.
        """
        x: npt.NDArray[Any] = np.asarray(features)
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise ProbeError(
                f"features have shape {x.shape}; this classifier reads matrices of {len(self.mean)} columns."
            )
        from scipy.special import log_softmax  # which takes longer to load than all of `probes`

        out: npt.NDArray[np.float64] = log_softmax(
            ((x - self.mean) / self.scale) @ self.weight.T + self.bias, axis=1
        )
        return out


@dataclass(frozen=True)
class PathPoint:
    """One layer at one strength of regularisation.

    Attributes:
        layer: name of the layer.
        l2: strength of the regularisation.
        objective: F on the training rows, nats.
        gap: certified upper bound on F - min F, nats.
        converged: whether the gap is within the tolerance; a strength that was not kept need not be there.
        iterations: L-BFGS steps, from the solution at the strength before.
        valid_loss: mean cross-entropy on the validation rows, nats; None without any.
        valid_error: fraction of the validation rows that are wrong.
    """

    layer: str
    l2: float
    objective: float
    gap: float
    converged: bool
    iterations: int
    valid_loss: float | None
    valid_error: float | None


@dataclass(frozen=True)
class FittedProbes:
    """Fitted probes of all layers, each at its best strength of regularisation.

    Attributes:
        train: readings on the rows that were fitted.
        valid: on those that chose the strength of regularisation, if given.
        test: on those that chose nothing, if given.
        classifiers: by layer.
        path: every fit that was made, by layer from strong to weak regularisation.
    """

    train: ProbeResult
    valid: ProbeResult | None
    test: ProbeResult | None
    classifiers: Mapping[str, LinearClassifier]
    path: tuple[PathPoint, ...]
