"""What is built on the instruments: run directories, TensorBoard, figures, tables and the command line."""

from .curvature import HessianSettings, measure_hessian
from .errors import AnalysisError
from .figures import error_by_depth
from .runs import Run
from .schedule import Schedule
from .sources import DataSplits, load_data, load_model
from .tables import frame, history

__all__ = [
    "AnalysisError",
    "DataSplits",
    "HessianSettings",
    "Run",
    "Schedule",
    "error_by_depth",
    "frame",
    "history",
    "load_data",
    "load_model",
    "measure_hessian",
]
