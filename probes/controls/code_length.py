"""How many bits the labels take, given a layer: prequential code length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arguments import whole_number
from ..fit import FeatureTable, LinearClassifier, fit_probes
from ..fit.splits import require_classes
from ..fit.strengths import from_strong_to_weak
from ..fit.views import RowSubset

__all__ = ["CodeLength", "code_length"]

_ROWS = 4096  # that are predicted together


@dataclass(frozen=True)
class CodeLength:
    """One layer's description of the labels.

    Attributes:
        layer: name of the layer.
        n: labels described.
        bits: length of their prequential code.
        uniform_bits: their length where all classes are equally likely, n log2 C.
        l2: strength of the regularisation whose code is the shortest; saying which is part of `bits`.
        blocks: rows that were known, and the bits per label of the block that followed.
    """

    layer: str
    n: int
    bits: float
    uniform_bits: float
    l2: float
    blocks: tuple[tuple[int, float], ...]

    @property
    def compression(self) -> float:
        """How many times shorter than with equally likely classes."""
        return self.uniform_bits / self.bits


def code_length(
    *,
    train: FeatureTable,
    l2: float | Sequence[float] = (1e-1, 1e-2, 1e-3),
    num_classes: int | None = None,
    seed: int = 0,
    **fit: Any,
) -> tuple[CodeLength, ...]:
    """The prequential (online) code of the labels given each layer (Voita & Titov 2020).

    Rows come in a random order, in blocks that double. The first block's labels cost log2 C bits each; each
    other block is coded with a probe fitted to all before it. A row's code leaves 1 part in t + 1 to classes
    alike, t being the rows known, so that a class not seen yet has a finite one. Short codes mean that the
    labels are easy to read off the layer, from few rows: there is no separate test set to overfit.

    Args:
        train: features and labels to describe.
        l2: strengths of regularisation; the shortest code is taken, and log2 of their number added to it.
        num_classes: C; one more than the largest label if not given.
        seed: of the order of rows.
        **fit: further arguments of `fit_probes`.

    Raises:
        ProbeError: for numbers that mean nothing, and as `fit_probes`.
    """
    strengths = from_strong_to_weak(l2, choosable=True)
    classes, _ = require_classes({"train": train.labels}, num_classes)
    seed = whole_number("seed", seed, least=0)
    order = np.random.default_rng(seed).permutation(train.n)
    least = 4 * classes
    ends = [train.n >> k for k in range(train.n.bit_length()) if train.n >> k >= min(least, train.n)][::-1]
    first = float(ends[0] * np.log2(classes))
    found: dict[str, list[CodeLength]] = {layer: [] for layer in train.layers}
    for strength in strengths:
        blocks: dict[str, list[tuple[int, float]]] = {layer: [] for layer in train.layers}
        total = dict.fromkeys(train.layers, first + float(np.log2(len(strengths))))
        start = None
        for known, end in pairwise(ends):
            start = fit_probes(
                RowSubset(train, order[:known]), l2=strength, num_classes=classes, start=start, **fit
            )
            following = RowSubset(train, order[known:end])
            for layer in train.layers:
                bits = _bits(start.classifiers[layer], following[layer], following.labels, known)
                blocks[layer].append((known, bits / (end - known)))
                total[layer] += bits
        for layer in train.layers:
            uniform = float(train.n * np.log2(classes))
            found[layer].append(
                CodeLength(layer, train.n, total[layer], uniform, strength, tuple(blocks[layer]))
            )
    return tuple(min(codes, key=lambda code: code.bits) for codes in found.values())


def _bits(probe: LinearClassifier, features: npt.NDArray[Any], labels: npt.NDArray[Any], known: int) -> float:
    bits = 0.0
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        log_p = probe.predict_log_proba(features[rows])
        p = np.exp(log_p[np.arange(len(log_p)), labels[rows]])
        bits -= float(np.log2((known * p + 1 / log_p.shape[1]) / (known + 1)).sum())
    return bits
