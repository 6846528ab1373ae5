"""Symmetric operators: known by their products with vectors, to scipy and to our own solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from .errors import HessianError

__all__ = ["MatrixOperator", "SymmetricOperator", "as_operator"]

_NUMPY: dict[torch.dtype, type] = {torch.float32: np.float32, torch.float64: np.float64}


class SymmetricOperator(LinearOperator, ABC):  # type: ignore[misc]
    """A symmetric matrix A (n, n) that is known by its products A v.

    To scipy it is a `LinearOperator` (`matvec`, `matmat`, `eigsh(operator, ...)`); `multiply` is the same
    on tensors that stay on the device.

    Attributes:
        device: where `multiply` wants its vectors.
        vector_dtype: and in which dtype, float32 or float64.
        products: how many vectors have been multiplied so far.
        layout: shape of each parameter, in the order in which the vectors have them; empty for a plain
            matrix.
    """

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype):
        super().__init__(_NUMPY[dtype], (size, size))
        self.device, self.vector_dtype = device, dtype
        self.products = 0
        self.layout: dict[str, tuple[int, ...]] = {}

    def multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        """The products with the rows of `vectors` (k, n), as the rows of a new tensor (k, n)."""
        self.products += len(vectors)
        return self._multiply(vectors)

    @abstractmethod
    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor: ...

    def _matvec(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._matmat(x.reshape(-1, 1))[:, 0]

    def _matmat(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rows = torch.as_tensor(np.ascontiguousarray(x.T), dtype=self.vector_dtype, device=self.device)
        return np.asarray(self.multiply(rows).cpu().numpy().T, dtype=self.dtype)

    def _adjoint(self) -> SymmetricOperator:
        return self


class MatrixOperator(SymmetricOperator):
    """A matrix (or any scipy `LinearOperator`) that the caller knows to be symmetric."""

    def __init__(self, matrix: LinearOperator):
        super().__init__(matrix.shape[0], torch.device("cpu"), torch.float64)
        self._matrix = matrix

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        product = self._matrix.matmat(vectors.numpy().T)
        return torch.as_tensor(np.ascontiguousarray(product.T), dtype=torch.float64)


def as_operator(matrix: object) -> SymmetricOperator:
    """A symmetric array, tensor, sparse matrix or scipy `LinearOperator` as a `SymmetricOperator`.

    Raises:
        HessianError: if it is not square.
    """
    if isinstance(matrix, SymmetricOperator):
        return matrix
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.detach().cpu().numpy()
    operator = aslinearoperator(matrix)
    if operator.shape[0] != operator.shape[1]:
        raise HessianError(f"a symmetric operator is square; this one has shape {operator.shape}.")
    return MatrixOperator(operator)
