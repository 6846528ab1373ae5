"""Reductions that have no meaning."""

from __future__ import annotations

from probes import ProbeSet

from ..probes.models import CLASSES, Mlp
from . import Case


def reduced_by(reduce: object) -> None:
    ProbeSet(Mlp(), "0", CLASSES, reduce=reduce)  # type: ignore[arg-type]


CASES = [
    Case("a word that is none", lambda: reduced_by("median"), "unknown reduction 'median'"),
    Case("a number that is none", lambda: reduced_by("avg:two"), "needs a positive whole number"),
]
