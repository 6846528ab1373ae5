"""How layers are probed offline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from .checks import require_choice, require_seed, require_steps, require_whole
from .errors import AnalysisError
from .network_figure import Palette

__all__ = ["FREE_SETTINGS", "ProbeSettings"]

FREE_SETTINGS = (  # those that may differ between calls for the same run
    "steps", "device", "workers", "batch_size", "keep_features", "controls", "palette", "diodes",
)  # fmt: skip


@dataclass(frozen=True)
class ProbeSettings:
    """How layers are probed offline.

    Attributes:
        layers: patterns as in `ProbeSet`.
        exclude: patterns of layers to leave out.
        reduce: reduction of the features, as text.
        layout: letters of the dimensions of layers that have so many, where the forward does not show them.
        l2: strengths of the penalty, one chosen on the validation set; `fit_probes` has a grid by default.
        early_stopping: rather stop the fit early, on the validation set, than choose among strengths.
        labels: which label set, where the data have several.
        controls: what to hold the probes against, names of `CONTROLS`; see `Controls`.
        examples: of the training set, chosen once, and a third as many of the other two; all if 0.
        dtype: of the features on disk, float32 or float16.
        autocast: let the model compute in bfloat16 where that suits an operation.
        keep_features: whether the features stay on disk, so that the same call takes seconds.
        batch_size: examples per forward.
        workers: processes that load data.
        seed: of random features and of the choice of examples.
        device: cpu, cuda, ...
        steps: snapshots to look at; all if empty.
        palette: colours of the network's picture, red-green or colour-blind.
        diodes: draw the probes as the diodes of the paper's appendix.

    Raises:
        AnalysisError: for a number or a word that means nothing.
    """

    layers: tuple[str, ...] = ("auto",)
    exclude: tuple[str, ...] = ()
    reduce: str = "auto"
    layout: str | None = None
    l2: tuple[float, ...] = ()
    early_stopping: bool = False
    labels: str = ""
    controls: tuple[str, ...] = ()
    examples: int = 0
    dtype: str = "float32"
    autocast: bool = False
    keep_features: bool = True
    batch_size: int = 64
    workers: int = 0
    seed: int = 0
    device: str = "cpu"
    steps: tuple[int, ...] = ()
    palette: Palette = "red-green"
    diodes: bool = False

    def __post_init__(self) -> None:
        require_whole(self, "batch_size", least=1)
        require_whole(self, "workers", "examples")
        require_seed(self)
        require_steps(self)
        require_choice(self, "dtype", ("float32", "float16"))
        require_choice(self, "palette", get_args(Palette))
        for strength in self.l2:
            if not 0 < strength < math.inf:
                raise AnalysisError(f"l2 must be finite numbers above 0, not {strength!r}.")
