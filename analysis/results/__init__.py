"""One file per result family: how its results are recorded, followed, drawn and shown as a table."""

from . import controls, density, line_search, probes, spectrum
from .family import Drawing, Family, Logged, Occasion, family_of, frame, register, scalars

__all__ = [
    "Drawing",
    "Family",
    "Logged",
    "Occasion",
    "controls",
    "density",
    "family_of",
    "frame",
    "line_search",
    "probes",
    "register",
    "scalars",
    "spectrum",
]
