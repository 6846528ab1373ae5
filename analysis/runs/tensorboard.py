"""Results as TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams, image, scalar

from hessian import LineSearch, Spectrum
from probes import ProbeResult

from ..jobs.controls import Controls
from .event_file import EventFile

__all__ = ["Events"]


class Events:
    """The event files of a run.

    Tags: `probes/<split>/error/<layer>`, likewise `loss` and `top5_error`; `model/<split>/error`. With
    several targets the split is `<split>/<target>`. Eigenvalues: `hessian/largest/01` and so on.
    """

    def __init__(self, path: Path, purge_step: int | None = None):
        self._file = EventFile(path, purge_step)

    def add_probes(self, result: ProbeResult, step: int) -> None:
        """Scalars of every probe, and of the model's own error."""
        many = len(result.references) > 1
        scalars: dict[str, float] = {}
        for r in result.readings:
            split = f"{result.split}/{r.target}" if many else result.split
            scalars[f"probes/{split}/error/{r.layer}"] = r.error
            scalars[f"probes/{split}/loss/{r.layer}"] = r.loss
            if r.top5_error is not None:
                scalars[f"probes/{split}/top5_error/{r.layer}"] = r.top5_error
        for reference in result.references:
            if reference.model_error is not None:
                scalars[f"model/{result.split}/error"] = reference.model_error
        self.add_scalars(scalars, step)

    def add_controls(self, controls: Controls, step: int) -> None:
        """Scalars by layer, of those that were measured."""
        scalars: dict[str, float] = {}
        for one in controls.random_labels or ():
            scalars[f"controls/selectivity/{one.layer}"] = one.selectivity
        for code in controls.code or ():
            scalars[f"controls/bits per label/{code.layer}"] = code.bits / code.n
        for name, result in controls.readouts.items():
            for reading in result.readings:
                scalars[f"controls/{name}/error/{reading.layer}"] = reading.error
        self.add_scalars(scalars, step)

    def add_spectrum(self, spectrum: Spectrum, step: int) -> None:
        """Eigenvalues by rank, the largest residual as a share of the width, and what they cost."""
        scalars = {
            f"hessian/{end}/{i:02d}": pair.value
            for end in ("largest", "smallest")
            for i, pair in enumerate(getattr(spectrum, end), start=1)
        }
        worst = max(pair.residual for pair in spectrum.pairs)
        scalars["hessian/solver/residual"] = worst / spectrum.width if spectrum.width > 0 else worst
        scalars["hessian/solver/products"] = spectrum.products
        scalars["hessian/solver/seconds"] = spectrum.seconds
        self.add_scalars(scalars, step)

    def add_line_search(self, search: LineSearch, name: str, step: int) -> None:
        """The best decrease and the slope, and the best step size if the direction is known well enough."""
        scalars = {"decrease": search.decrease, "slope": search.slope, "slope doubt": search.slope_doubt}
        if search.determined:
            scalars["alpha"] = search.alpha_best
        self.add_scalars({f"hessian/search/{key}/{name}": value for key, value in scalars.items()}, step)

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Numbers by tag."""
        self._file.add([scalar(tag, value) for tag, value in scalars.items()], step)

    def add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """A picture."""
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
        self._file.add([image(tag, pixels, dataformats="HWC")], step)

    def add_hparams(self, settings: Mapping[str, object], metrics: Mapping[str, float], step: int) -> None:
        """The HPARAMS page: the run's settings and what came of them."""
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        self._file.add(list(hparams(plain, dict(metrics))), 0)
        self.add_scalars(metrics, step)
