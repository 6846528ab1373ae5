"""Trace and Frobenius norm of an operator, from its products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from thermoscope.errors import HessianError

from ..products.symmetric import SymmetricOperator, as_operator
from .arguments import seeded
from .counted import Products
from .tall import combine, combine_in_place, gram

__all__ = ["Estimate", "frobenius_norm", "trace"]

# The vectors multiplied at once: a stack of three million entries each has to fit into memory several times.
_BLOCK = 8
# With fewer products Hutch++ has no residual samples to take a standard error from.
_LEAST = 6


@dataclass(frozen=True)
class Estimate:
    """A number found by sampling.

    Attributes:
        value: its expectation is what was asked for.
        standard_error: of `value`, from the scatter of the samples; 0 if it is exact, NaN for one sample.
    """

    value: float
    standard_error: float

    @classmethod
    def from_samples(cls, samples: Sequence[float] | npt.NDArray[np.float64]) -> Estimate:
        """The mean of independent samples."""
        values = np.asarray(samples, np.float64)
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), float(error))


def trace(operator: object, *, products: int = 100, seed: int = 0, progress: bool = False) -> Estimate:
    """Tr A by Hutch++ (Meyer, Musco, Musco and Woodruff 2021, algorithm 1), without bias.

    A third of the products finds orthonormal rows Q where A is largest, a third gives Tr Q A Q^T exactly, and
    the rest samples the trace in the complement with random signs (Hutchinson). The standard error is that
    of the samples. It needs the memory of a third as many vectors as products, and of some thirty more.

    Args:
        operator: a `SymmetricOperator`, or a symmetric array, tensor or scipy `LinearOperator`, of size n.
        products: how many there may be. With at least n of them the trace is exact (and costs n).
        seed: of the random signs; the global random streams are not touched.
        progress: show a progress bar.

    Raises:
        HessianError: for fewer products than n and 6, or if one is not finite.
    """
    operator = as_operator(operator)
    size = int(operator.shape[0])
    if products < min(size, _LEAST):
        raise HessianError(
            f"products={products} is too few for a trace with a standard error; allow at least "
            f"{min(size, _LEAST)}, better 100."
        )
    with _Multiplier(operator, min(products, size), "trace", progress) as multiply:
        if products >= size:
            return Estimate(sum(multiply.quadratic_forms(_unit_vectors(operator))) * multiply.unit, 0.0)
        generator = seeded(seed)
        third = products // 3
        basis = _orthonormal(multiply.rows(_signs(operator, third, generator), third))
        captured = sum(multiply.quadratic_forms(basis.split(_BLOCK)))
        signs = _signs(operator, products - third - len(basis), generator)
        rest = list(multiply.quadratic_forms(_without(basis, block) for block in signs))
    residual = Estimate.from_samples(rest)
    return Estimate((captured + residual.value) * multiply.unit, residual.standard_error * multiply.unit)


def frobenius_norm(
    operator: object, *, products: int = 100, seed: int = 0, progress: bool = False
) -> Estimate:
    """||A||_F, the root of the mean of ||A g||^2 over vectors g of random signs.

    The standard error is that of the mean, carried through the root (delta method); the root makes the value
    too small by about standard_error^2 / (2 value).

    Args:
        operator: a `SymmetricOperator`, or a symmetric array, tensor or scipy `LinearOperator`, of size n.
        products: how many there may be. With at least n of them the norm is exact (and costs n).
        seed: of the random signs; the global random streams are not touched.
        progress: show a progress bar.

    Raises:
        HessianError: for fewer products than n and 2, or if one is not finite.
    """
    operator = as_operator(operator)
    size = int(operator.shape[0])
    if products < min(size, 2):
        raise HessianError(
            f"products={products} is too few for a norm with a standard error; allow at least 2, better 100."
        )
    with _Multiplier(operator, min(products, size), "Frobenius norm", progress) as multiply:
        if products >= size:
            squares = sum(multiply.squared_norms(_unit_vectors(operator)))
            return Estimate(math.sqrt(squares) * multiply.unit, 0.0)
        signs = _signs(operator, products, seeded(seed))
        square = Estimate.from_samples(list(multiply.squared_norms(signs)))
    norm = math.sqrt(square.value)
    error = square.standard_error / (2 * norm) if norm else 0.0
    return Estimate(norm * multiply.unit, error * multiply.unit)


class _Multiplier:
    """Products with blocks of rows, of which only what is asked for is kept; with a progress bar."""

    def __init__(self, operator: SymmetricOperator, total: int, task: str, progress: bool):
        self._operator = operator
        self._products = Products(operator, None, progress=False)
        self._bar = tqdm(
            desc=task, total=total, unit=" products", leave=False, disable=None if progress else True
        )

    def __enter__(self) -> _Multiplier:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        product = self._products(block)
        self._bar.update(len(block))
        return product

    @property
    def unit(self) -> float:
        """What the products are divided by, so that their squares neither overflow nor vanish."""
        return self._products.unit or 1.0

    def quadratic_forms(self, blocks: Iterable[torch.Tensor]) -> Iterator[float]:
        """v A v for every row v of the blocks, in units of `unit`."""
        for block in blocks:
            yield from (_inner(v, row) for v, row in zip(block, self(block), strict=True))

    def squared_norms(self, blocks: Iterable[torch.Tensor]) -> Iterator[float]:
        """||A v||^2 for every row v of the blocks, in units of its square."""
        for block in blocks:
            yield from (_inner(row, row) for row in self(block))

    def rows(self, blocks: Iterable[torch.Tensor], count: int) -> torch.Tensor:
        """A v for every row v of the blocks, `count` in all."""
        rows = torch.empty(
            count, self._operator.shape[0], dtype=self._operator.vector_dtype, device=self._operator.device
        )
        end = 0
        for block in blocks:
            rows[end : end + len(block)] = self(block)
            end += len(block)
        return rows


def _signs(operator: SymmetricOperator, count: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """`count` vectors of random signs, in blocks; drawn on the CPU: the same for any device."""
    for begin in range(0, count, _BLOCK):
        shape = (min(_BLOCK, count - begin), operator.shape[0])
        bits = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        yield bits.to(operator.device, operator.vector_dtype).mul_(2).sub_(1)


def _unit_vectors(operator: SymmetricOperator) -> Iterator[torch.Tensor]:
    size = operator.shape[0]
    for begin in range(0, size, _BLOCK):
        block = torch.zeros(min(_BLOCK, size - begin), size)
        block[:, begin:].fill_diagonal_(1)
        yield block.to(operator.device, operator.vector_dtype)


def _inner(v: torch.Tensor, w: torch.Tensor) -> float:
    return float(gram(v[None], w[None])[0, 0])


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the span of the rows, which are overwritten; what is below 1e-6 is left out.

    Householder's method in float32 (torch.linalg.qr) is off by 3e-4 for three million entries. Here inner
    products are in float64: the first pass leaves at most 1e-4 (1e-16 over the smallest square kept), the
    second only the rounding of the rows.
    """
    for _ in range(2):
        squares, directions = np.linalg.eigh(gram(rows, rows))
        kept = squares > 1e-12 * squares.max(initial=0.0)
        combine_in_place(rows, directions[:, kept] / np.sqrt(squares[kept]))
        rows = rows[: int(kept.sum())]
    return rows


def _without(basis: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """The rows of `block` without their part in the span of the orthonormal `basis`."""
    return block - combine(basis, gram(basis, block))
