"""What each command is told: settings with their defaults, checked before anything is made.

Nothing heavy is imported here, so that the command line can show them at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from thermoscope.errors import AnalysisError

from ..runs.schedule import Schedule
from .checks import require_choice, require_number, require_seed, require_steps, require_whole

if TYPE_CHECKING:
    from ..figures.network.figure import Palette

__all__ = ["CONTROLS", "FREE_SETTINGS", "OPTIMIZERS", "HessianSettings", "ProbeSettings", "TrainSettings"]

# Names in torch.optim, and what is set besides the learning rate.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"momentum": 0.9}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
    "rmsprop": ("RMSprop", {}),
}

# Controls of probes; `Controls` has what each measures.
CONTROLS = ("random-labels", "code", "neighbours", "ridge", "curve")

FREE_SETTINGS = (  # those that may differ between calls for the same run
    "steps", "device", "workers", "batch_size", "keep_features", "controls", "palette", "diodes",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """What `thermoscope train` runs; becomes `config.json`.

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
        from ..figures.network.figure import Palette

        require_choice(self, "palette", get_args(Palette))
        for control in self.controls:
            if control not in CONTROLS:
                raise AnalysisError(f"there is no control {control!r}; there are {', '.join(CONTROLS)}.")
        for strength in self.l2:
            if not 0 < strength < math.inf:
                raise AnalysisError(f"l2 must be finite numbers above 0, not {strength!r}.")


@dataclass(frozen=True)
class HessianSettings:
    """What `thermoscope hessian` measures; becomes `spectra/settings.json`.

    Attributes:
        largest: eigenpairs at the upper end.
        smallest: eigenpairs at the lower end.
        tol: largest residual of a converged pair, as a share of the spectrum's width.
        subset: share of the training set, chosen once; by default 5%, but at least 1,000 examples.
        parameters: name globs of the parameters; all if empty.
        line_searches: along how many pairs of each end.
        mode: how products are computed, the name of one of `hessian.MODES`; chosen by itself if None.
        density: whether the whole spectral density is estimated.
        vectors: whether eigenvectors are kept on disk.
        steps: snapshots to look at; all if empty.
        seed: of the subset and the solver.
        device: cpu, cuda, ...

    Raises:
        AnalysisError: for a number that means nothing.
    """

    largest: int = 20
    smallest: int = 3
    tol: float = 1e-3
    subset: float | None = None
    parameters: tuple[str, ...] = ()
    line_searches: int = 3
    mode: str | None = None
    density: bool = False
    vectors: bool = True
    steps: tuple[int, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_whole(self, "largest", "smallest", "line_searches")
        if self.largest + self.smallest == 0:
            raise AnalysisError("largest and smallest are both 0; ask for one eigenpair at least.")
        require_number(self, "tol", most=1.0)
        if self.subset is not None:
            require_number(self, "subset", most=1.0)
        if self.mode is not None:
            from hessian import MODES

            require_choice(self, "mode", [mode.name for mode in MODES])
        require_seed(self)
        require_steps(self)
