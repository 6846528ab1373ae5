"""What is built on the instruments: run directories, TensorBoard, figures, tables and the command line."""

from .curvature import HessianSettings, measure_hessian
from .errors import AnalysisError
from .figures import error_by_depth
from .graph import GraphNode, ModelGraph, model_graph
from .graph_figure import graph_figure, graph_over_training, save_graph_figure
from .runs import Run
from .schedule import Schedule
from .sources import DataSplits, load_data, load_model
from .tables import frame, history

__all__ = [
    "AnalysisError",
    "DataSplits",
    "GraphNode",
    "HessianSettings",
    "ModelGraph",
    "Run",
    "Schedule",
    "error_by_depth",
    "frame",
    "graph_figure",
    "graph_over_training",
    "history",
    "load_data",
    "load_model",
    "measure_hessian",
    "model_graph",
    "save_graph_figure",
]
