"""Other ways to read a layer out: nearest neighbours and ridge regression, in the frame of the probes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from thermoscope.errors import ProbeError

from ..arguments import whole_number
from ..fit.features import FeatureTable, Rows, Scaling
from ..fit.readings import result
from ..fit.splits import Splits
from ..fit.strengths import from_strong_to_weak
from ..mean_se import Tally
from ..results import ProbeResult, Reading

__all__ = ["nearest_neighbours", "ridge"]

_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_LARGEST = 16_384  # matrix to factor: 2 GiB in float64


@torch.no_grad()
def nearest_neighbours(
    train: FeatureTable,
    test: FeatureTable,
    *,
    k: int = 20,
    memory: int = 2**32,
    num_classes: int | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Each layer read out by the votes of the `k` nearest training rows: nothing is fitted.

    Distance is Euclidean between standardised features. The error is that of the most frequent label (of
    equally frequent ones that of the lower number), the loss that of (votes + 1 / C) / (k + 1), in nats.

    Args:
        train: rows that vote.
        test: rows that are voted on.
        k: neighbours.
        memory: bytes for the training rows of a layer; if they need more, they are read anew for each block
            of test rows.
        num_classes: C; one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Raises:
        ProbeError: if `k` is no number of training rows, or the splits do not fit together.
    """
    k = whole_number("k", k, least=1)
    memory = whole_number("memory", memory, least=0)
    if k > train.n:
        raise ProbeError(f"k={k}: train has {train.n} rows that can be neighbours.")
    splits = Splits.of(train, None, test, num_classes)
    labels = torch.from_numpy(train.labels)
    readings = []
    for layer in tqdm(
        train.layers, desc="nearest neighbours", leave=False, disable=None if progress else True
    ):
        known, asked = _rows(splits, layer, ("train", "test"), memory)
        tally = Tally()
        for block, z in asked.blocks(torch.float32):
            y = torch.from_numpy(test.labels[block])
            votes = torch.zeros(len(z), splits.num_classes)
            nearest = labels[_nearest(known, z, k)]
            votes.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=torch.float32))
            p = (votes + 1 / splits.num_classes) / (k + 1)
            _add(tally, -p.gather(1, y[:, None])[:, 0].log(), votes, y)
        readings.append(_reading(test, layer, known.size, tally, None))
    return result("test", test, splits.num_classes, readings)


@torch.no_grad()
def ridge(
    train: FeatureTable,
    valid: FeatureTable | None = None,
    test: FeatureTable | None = None,
    *,
    l2: float | Sequence[float] = _STRENGTHS,
    memory: int = 2**32,
    num_classes: int | None = None,
    progress: bool = True,
) -> dict[str, ProbeResult]:
    """Each layer read out by ridge regression of one-hot labels on standardised features, in closed form.

    Minimises 1/n sum_i ||W z_i + b - e_i||^2 + l2 ||W||^2. The loss of a reading is the squared error per
    row, summed over classes; the error is that of the largest output. The strength with the least squared
    error on `valid` is kept.

    Args:
        train: rows to fit.
        valid: chooses among strengths; needed for more than one.
        test: only measured.
        l2: a strength or several.
        memory: bytes for the float32 rows of a layer.
        num_classes: one more than the largest label of `train` if not given.
        progress: show a progress bar.

    Returns:
        Readings by split: `"train"`, and `"valid"` and `"test"` as far as given.

    Raises:
        ProbeError: without validation rows for several strengths, where both features and rows are too many
            for one factorisation, or if the splits do not fit together.
    """
    strengths = from_strong_to_weak(l2, choosable=valid is not None)
    memory = whole_number("memory", memory, least=0)
    splits = Splits.of(train, valid, test, num_classes)
    readings: dict[str, list[Reading]] = {split: [] for split in splits.tables}
    for layer in tqdm(train.layers, desc="ridge", leave=False, disable=None if progress else True):
        rows = dict(zip(splits.tables, _rows(splits, layer, tuple(splits.tables), memory), strict=True))
        fits = _Ridge(rows["train"], torch.from_numpy(train.labels), splits.num_classes, layer)
        thetas = [fits.solve(strength) for strength in strengths]
        tallies = [_measure(rows["valid"], valid, theta) for theta in thetas] if valid is not None else []
        losses = [float(tally.means()[0][0]) for tally in tallies]
        best = losses.index(min(losses)) if losses else 0
        for split, table in splits.tables.items():
            tally = _measure(rows[split], table, thetas[best])
            readings[split].append(_reading(table, layer, rows[split].size, tally, strengths[best]))
    return {
        split: result(split, table, splits.num_classes, readings[split])
        for split, table in splits.tables.items()
    }


class _Ridge:
    """Normal equations in the features or, where they are more, in the rows; float64."""

    def __init__(self, rows: Rows, labels: torch.Tensor, num_classes: int, layer: str):
        self._rows, self._in_rows = rows, rows.size > rows.n
        side = min(rows.size, rows.n)
        if side > _LARGEST:
            raise ProbeError(
                f"layer {layer!r} has {rows.size} features and {rows.n} rows; ridge regression factors a "
                f"matrix of the smaller number, at most {_LARGEST}. Reduce features, or fit fewer rows."
            )
        one_hot = torch.nn.functional.one_hot(labels, num_classes).double()
        self._mean = one_hot.mean(0)
        self._targets = (one_hot - self._mean) / rows.n
        blocks = rows.blocks(torch.float64)
        if self._in_rows:
            z = torch.cat([z for _, z in blocks])
            self._matrix, self._z, self._right = z @ z.T / rows.n, z, self._targets
        else:
            self._matrix = torch.zeros(side, side, dtype=torch.float64)
            self._right = torch.zeros(side, num_classes, dtype=torch.float64)
            for block, z in blocks:
                self._matrix += z.T @ z / rows.n
                self._right += z.T @ self._targets[block]

    def solve(self, l2: float) -> torch.Tensor:
        """[W b] of shape (C, size + 1)."""
        matrix = self._matrix.clone()
        matrix.diagonal().add_(l2)
        solution = torch.cholesky_solve(self._right, torch.linalg.cholesky(matrix))
        weight = self._z.T @ solution if self._in_rows else solution
        return torch.cat([weight.T, self._mean[:, None]], 1)


def _rows(splits: Splits, layer: str, names: tuple[str, ...], memory: int) -> list[Rows]:
    """Standardised by the training rows, which alone are held in memory."""
    scaling = Scaling.of(splits.tables["train"][layer], layer)
    out = []
    for name in names:
        matrix = splits.tables[name][layer]
        if matrix.shape[1] != len(scaling.mean):
            raise ProbeError(
                f"layer {layer!r} has {matrix.shape[1]} features in {name} and {len(scaling.mean)} in train; "
                "extract both with the same reduction."
            )
        held = memory if name == "train" else 0
        out.append(Rows(matrix, scaling, held, torch.device("cpu"), splits.num_classes))
    return out


def _nearest(known: Rows, z: torch.Tensor, k: int) -> torch.Tensor:
    """Row numbers (rows of z, k) of the nearest known rows."""
    best = torch.empty(len(z), 0)
    rows = torch.empty(len(z), 0, dtype=torch.int64)
    for block, x in known.blocks(torch.float32):
        near = x.square().sum(1) - 2 * z @ x.T  # the distance squared, up to what is the same for all
        number = torch.arange(block.start, block.stop).expand(len(z), -1)
        near, number = torch.cat([best, near], 1), torch.cat([rows, number], 1)
        best, chosen = near.topk(min(k, near.shape[1]), largest=False)
        rows = number.gather(1, chosen)
    return rows


def _measure(rows: Rows, table: FeatureTable, theta: torch.Tensor) -> Tally:
    tally = Tally()
    for block, z in rows.blocks(torch.float64):
        outputs, y = torch.addmm(theta[:, -1], z, theta[:, :-1].T), torch.from_numpy(table.labels[block])
        one_hot = torch.nn.functional.one_hot(y, len(theta))
        _add(tally, (outputs - one_hot).square().sum(1), outputs, y)
    return tally


def _add(tally: Tally, loss: torch.Tensor, outputs: torch.Tensor, y: torch.Tensor) -> None:
    """Loss, error and top-5 error of rows; ties rank the lower class first."""
    own = outputs.gather(1, y[:, None])
    lower = torch.arange(outputs.shape[1]) < y[:, None]
    rank = ((outputs > own) | ((outputs == own) & lower)).sum(1)
    values = torch.stack([loss.double(), (rank >= 1).double(), (rank >= 5).double()])
    tally.add(values[..., None], torch.ones(len(y), 1, dtype=torch.bool))


def _reading(table: FeatureTable, layer: str, size: int, tally: Tally, l2: float | None) -> Reading:
    (loss, error, top5), errors = (part.tolist() for part in tally.means())
    low, high = tally.interval(1)
    return Reading(
        layer,
        "y",
        table.reductions[layer],
        size,
        None,
        0,
        table.n,
        loss,
        errors[0],
        error,
        errors[1],
        top5,
        errors[2],
        l2,
        error_low=low,
        error_high=high,
    )
