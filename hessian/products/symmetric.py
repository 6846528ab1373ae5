"""Symmetric operators: known by their products with vectors, to scipy and to our own solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from thermoscope.errors import HessianError, first_line

__all__ = ["MatrixOperator", "SymmetricOperator", "as_operator"]

T = TypeVar("T", bound=LinearOperator)

_NUMPY: dict[torch.dtype, type] = {torch.float32: np.float32, torch.float64: np.float64}


class SymmetricOperator(LinearOperator, ABC):  # type: ignore[misc]
    """A symmetric matrix A (n, n) that is known by its products A v.

    To scipy it is a `LinearOperator` (`matvec`, `matmat`, `eigsh(operator, ...)`); `multiply` is the same
    on tensors that stay on the device.

    Attributes:
        device: where `multiply` wants its vectors.
        vector_dtype: and in which dtype, float32 or float64.
        eps: relative rounding of a product; that of `vector_dtype` unless a subclass knows better.
        mode: the way in which products are computed, if there are several.
        products: how many vectors have been multiplied so far.
        layout: shape of each parameter, in the order in which the vectors have them; empty for a plain
            matrix.
    """

    mode = ""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype):
        super().__init__(_NUMPY[dtype], (size, size))
        self.device, self.vector_dtype = device, dtype
        self.eps = float(torch.finfo(dtype).eps)
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
        if np.iscomplexobj(x):
            parts = self._matmat(x.real), self._matmat(x.imag)
            return np.asarray(parts[0] + 1j * parts[1])
        rows = torch.as_tensor(np.ascontiguousarray(x.T), dtype=self.vector_dtype, device=self.device)
        return np.asarray(self.multiply(rows).detach().cpu().numpy().T, dtype=self.dtype)

    def _adjoint(self) -> SymmetricOperator:
        return self


class MatrixOperator(SymmetricOperator):
    """A matrix (or any scipy `LinearOperator`) that the caller knows to be symmetric."""

    def __init__(self, matrix: LinearOperator, eps: float = 0.0):
        """`eps`: rounding of its products, if that is more than float64's."""
        super().__init__(matrix.shape[0], torch.device("cpu"), torch.float64)
        self._matrix = matrix
        self.eps = max(self.eps, eps)

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        try:
            product = self._matrix.matmat(vectors.numpy().T)
            real = np.asarray(product.real, np.float64)
        except (ValueError, TypeError) as error:  # scipy's own words for a product of the wrong shape or kind
            raise HessianError(
                f"a product with the operator failed ({first_line(error)}); it must map real vectors of "
                f"length {self.shape[0]} to vectors of that length."
            ) from error
        if np.iscomplexobj(product):
            raise HessianError(_COMPLEX)
        return torch.as_tensor(np.ascontiguousarray(real.T))


_COMPLEX = (
    "the operator is complex, and only real symmetric ones are supported; of a Hermitian A + iB take the "
    "real [[A, -B], [B, A]], which has each eigenvalue twice."
)


def as_operator(matrix: object) -> SymmetricOperator:
    """A symmetric array, tensor, sparse matrix or scipy `LinearOperator` as a `SymmetricOperator`.

    Raises:
        HessianError: if it is none of these, empty, not square, complex, or not numeric.
    """
    if isinstance(matrix, SymmetricOperator):
        return _square(matrix)
    if isinstance(matrix, (np.ndarray, torch.Tensor)) and matrix.ndim != 2:
        raise HessianError(f"a symmetric operator is square; this one has shape {tuple(matrix.shape)}.")
    try:
        if isinstance(matrix, torch.Tensor):
            matrix = matrix.detach().to_dense().cpu()
            matrix = (matrix if matrix.is_complex() else matrix.double()).numpy()
        operator = aslinearoperator(matrix)
        kind = np.dtype(operator.dtype).kind
    except (TypeError, ValueError, NotImplementedError) as error:
        raise HessianError(
            f"a {type(matrix).__name__} is not an operator; give a symmetric array, tensor, sparse matrix or "
            f"scipy LinearOperator, or a loss's hessian()."
        ) from error
    if kind == "c":
        raise HessianError(_COMPLEX)
    if kind not in "fiub":
        raise HessianError(f"the operator has entries of type {operator.dtype}; give real numbers.")
    # An operator that says float32 may compute in float32; a matrix of float32 is multiplied in float64.
    computes = isinstance(matrix, LinearOperator) and kind == "f"
    return MatrixOperator(_square(operator), float(np.finfo(operator.dtype).eps) if computes else 0.0)


def _square(operator: T) -> T:
    if operator.shape[0] != operator.shape[1]:
        raise HessianError(f"a symmetric operator is square; this one has shape {operator.shape}.")
    if operator.shape[0] == 0:
        raise HessianError("the operator is empty: it has no eigenvalues.")
    return operator
