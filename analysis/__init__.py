"""What is built on the instruments: run directories, TensorBoard, figures, tables and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curvature import HessianSettings, measure_hessian
    from .errors import AnalysisError
    from .figures import error_by_depth
    from .graph import GraphNode, ModelGraph, model_graph
    from .network_figure import graph_figure, graph_over_training, save_graph_figure
    from .preprocessing import Preprocessing, own_preprocessing
    from .probe_settings import ProbeSettings
    from .probing import probe_model, probe_snapshots
    from .runs import Run
    from .schedule import Schedule
    from .sources import DataSplits, load_data, load_model
    from .tables import by_step, frame, history
    from .training_figures import error_curves, error_heat_map
    from .weights import load_checkpoint_of, load_weights

__all__ = [
    "AnalysisError",
    "DataSplits",
    "GraphNode",
    "HessianSettings",
    "ModelGraph",
    "Preprocessing",
    "ProbeSettings",
    "Run",
    "Schedule",
    "by_step",
    "error_by_depth",
    "error_curves",
    "error_heat_map",
    "frame",
    "graph_figure",
    "graph_over_training",
    "history",
    "load_checkpoint_of",
    "load_data",
    "load_model",
    "load_weights",
    "measure_hessian",
    "model_graph",
    "own_preprocessing",
    "probe_model",
    "probe_snapshots",
    "save_graph_figure",
]

# Where each name comes from is imported when it is first asked for: the command answers a wrong word at once,
# and Ctrl-C finds it ready.
_HOMES = {
    "curvature": ("HessianSettings", "measure_hessian"),
    "errors": ("AnalysisError",),
    "figures": ("error_by_depth",),
    "graph": ("GraphNode", "ModelGraph", "model_graph"),
    "network_figure": ("graph_figure", "graph_over_training", "save_graph_figure"),
    "preprocessing": ("Preprocessing", "own_preprocessing"),
    "probe_settings": ("ProbeSettings",),
    "probing": ("probe_model", "probe_snapshots"),
    "runs": ("Run",),
    "schedule": ("Schedule",),
    "sources": ("DataSplits", "load_data", "load_model"),
    "tables": ("by_step", "frame", "history"),
    "training_figures": ("error_curves", "error_heat_map"),
    "weights": ("load_checkpoint_of", "load_weights"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
