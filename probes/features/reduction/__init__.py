"""Reductions: from a layer's features to the few numbers per example that a probe reads.

A reduction is a value that can be written down (`Pool("avg", 2)`, in text `"avg:2"`); bound to a layer (see
`bind`) it is a function from `Features` to a new float32 matrix. Several in a row are a tuple, or in text
`"avg:2,subset:1000"`. `contract.py` says what a reduction is; each stands in a file of its own.
"""

from .auto import Auto
from .bound import BoundReduction, bind
from .contract import Reduction
from .flatten import Flatten
from .parser import Reduce, chain_of, parse_reduction
from .pool import Pool
from .positions import Positions
from .project import Project
from .subset import Subset
from .token import Token

__all__ = [
    # the contract
    "Reduction",
    # its members
    "Auto",
    "Flatten",
    "Pool",
    "Positions",
    "Project",
    "Subset",
    "Token",
    # as they are asked for, and bound to a layer
    "BoundReduction",
    "Reduce",
    "bind",
    "chain_of",
    "parse_reduction",
]
