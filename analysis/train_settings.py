"""What `thermoscope train` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .checks import require_choice, require_number, require_seed, require_whole
from .schedule import Schedule

__all__ = ["OPTIMIZERS", "TrainSettings"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class TrainSettings:
    """What is run; becomes `config.json`.

    Attributes:
        model: see `load_model`.
        data: see `load_data`; likewise `data_dir`, `image_size` and `rgb`.
        probe: layers with a probe, patterns as in `ProbeSet`.
        exclude: patterns of layers to leave out.
        reduce: reduction of the features, as text.
        layout: letters of the dimensions of layers that have so many, where the forward does not show them.
        probe_lr: learning rate of the probes.
        fit_epochs: passes at most with which fresh probes are fitted to the fixed model before and after.
        epochs: passes of the model over the training set.
        batch_size: examples per step.
        optimizer: sgd, adam, adamw or rmsprop.
        lr: its learning rate.
        evaluate: schedule of probe evaluations on the validation set.
        snapshots: schedule of saved weights.
        seed: of the model's weights, the order of the data, the probes' random features, and of Python's,
            NumPy's and torch's streams, from which a data set's augmentation may draw.
        device: cpu, cuda, ...
        workers: processes that load data; their number changes no result.

    Raises:
        AnalysisError: for a number, a schedule or an optimizer that means nothing.
    """

    model: str
    data: str
    data_dir: str = "data"
    image_size: int | None = None
    rgb: bool = False
    probe: tuple[str, ...] = ("auto",)
    exclude: tuple[str, ...] = ()
    reduce: str = "auto"
    layout: str | None = None
    probe_lr: float = 0.03
    fit_epochs: int = 10
    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adam"
    lr: float = 1e-3
    evaluate: str = "epoch"
    snapshots: str = "none"
    seed: int = 0
    device: str = "cpu"
    workers: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "epochs", "batch_size", "fit_epochs", least=1)
        require_whole(self, "workers")
        if self.image_size is not None:
            require_whole(self, "image_size", least=1)
        require_number(self, "lr", "probe_lr")
        require_seed(self)
        require_choice(self, "optimizer", OPTIMIZERS)
        for text in (self.evaluate, self.snapshots):
            Schedule(text)
