"""TensorBoard events: numbers, pictures and the page of settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams, image, scalar

from .event_file import EventFile

__all__ = ["Events"]


class Events:
    """The event files of a run; each result family has tags of its own."""

    def __init__(self, path: Path, purge_step: int | None = None):
        self._file = EventFile(path, purge_step)

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
