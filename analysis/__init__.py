"""What is built on the instruments: run directories, TensorBoard, figures, tables and the command line."""

from .curvature import HessianSettings, measure_hessian
from .errors import AnalysisError
from .figures import error_by_depth
from .graph import GraphNode, ModelGraph, model_graph
from .graph_figure import graph_figure, graph_over_training, save_graph_figure
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
