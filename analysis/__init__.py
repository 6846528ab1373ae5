"""What is built on the instruments: run directories, TensorBoard, figures, tables and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thermoscope.errors import AnalysisError
from thermoscope.shadowing import require_own_packages

if TYPE_CHECKING:
    from .figures.network.figure import graph_figure, graph_over_training, save_graph_figure
    from .figures.network.graph import GraphNode, ModelGraph, model_graph
    from .figures.probes import error_by_depth
    from .figures.probes_over_training import error_curves, error_heat_map
    from .jobs.hessian import measure_hessian
    from .jobs.probe import probe_model, probe_snapshots
    from .jobs.settings import HessianSettings, ProbeSettings, TrainSettings
    from .jobs.train import train
    from .results import Drawing, Family, Logged, Occasion, frame, register, scalars
    from .results.controls import Controls
    from .results.probes import by_step, history
    from .runs.run import Run
    from .runs.schedule import Schedule
    from .sources.data import DataSplits, load_data
    from .sources.models import load_model
    from .sources.preprocessing import Preprocessing, own_preprocessing
    from .sources.weights import load_checkpoint_of, load_weights

__all__ = [
    # run directories, and what is kept in them
    "Run",
    "Schedule",
    "Logged",
    "Controls",
    "frame",
    "scalars",
    "by_step",
    "history",
    # results of your own
    "Family",
    "Occasion",
    "Drawing",
    "register",
    # what the commands do
    "train",
    "probe_model",
    "probe_snapshots",
    "measure_hessian",
    "TrainSettings",
    "ProbeSettings",
    "HessianSettings",
    # models, data and checkpoints by name
    "load_model",
    "load_data",
    "load_weights",
    "load_checkpoint_of",
    "DataSplits",
    "Preprocessing",
    "own_preprocessing",
    # figures
    "error_by_depth",
    "error_curves",
    "error_heat_map",
    "model_graph",
    "ModelGraph",
    "GraphNode",
    "graph_figure",
    "graph_over_training",
    "save_graph_figure",
    # errors
    "AnalysisError",
]

# Where each name comes from is imported when it is first asked for: the command answers a wrong word at once,
# and Ctrl-C finds it ready.
_HOMES = {
    "figures.network.figure": ("graph_figure", "graph_over_training", "save_graph_figure"),
    "figures.network.graph": ("GraphNode", "ModelGraph", "model_graph"),
    "figures.probes": ("error_by_depth",),
    "figures.probes_over_training": ("error_curves", "error_heat_map"),
    "jobs.hessian": ("measure_hessian",),
    "jobs.probe": ("probe_model", "probe_snapshots"),
    "jobs.settings": ("HessianSettings", "ProbeSettings", "TrainSettings"),
    "jobs.train": ("train",),
    "results": ("Drawing", "Family", "Logged", "Occasion", "frame", "register", "scalars"),
    "results.controls": ("Controls",),
    "results.probes": ("by_step", "history"),
    "runs.run": ("Run",),
    "runs.schedule": ("Schedule",),
    "sources.data": ("DataSplits", "load_data"),
    "sources.models": ("load_model",),
    "sources.preprocessing": ("Preprocessing", "own_preprocessing"),
    "sources.weights": ("load_checkpoint_of", "load_weights"),
}


require_own_packages("probes", "hessian")


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
