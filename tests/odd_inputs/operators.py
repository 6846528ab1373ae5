"""Operators of odd types, scales and structures, and odd requests: the true eigenvalues, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from hessian import (
    Eigsh,
    Lanczos,
    SymmetricOperator,
    extreme_eigenpairs,
    frobenius_norm,
    spectral_density,
    trace,
)

from . import Case

Array = npt.NDArray[Any]

SIZE = 12


def symmetric(size: int = SIZE, seed: int = 0) -> Array:
    """Random, with distinct eigenvalues of both signs."""
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return (matrix + matrix.T) / 2


def right(operator: Any, matrix: Array, largest: int = 2, smallest: int = 1, tol: float = 1e-6) -> None:
    """The eigenvalues are those of the matrix, by LAPACK, to tol x width or the rounding of float32."""
    exact = np.linalg.eigvalsh(matrix.astype(np.float64))
    found = extreme_eigenpairs(operator, largest, smallest, tol=tol)
    values = [pair.value for pair in (*found.largest, *found.smallest)]
    wanted = [*exact[::-1][:largest], *exact[:smallest]]
    np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-6 * np.abs(exact).max())
    assert found.converged


class Operator(SymmetricOperator):
    """Products by any function of the vectors and the number of calls so far."""

    def __init__(
        self,
        product: Callable[[torch.Tensor, int], Any],
        dtype: torch.dtype = torch.float64,
        size: int = SIZE,
    ):
        super().__init__(size, torch.device("cpu"), dtype)
        self._product, self._calls = product, 0

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        product: torch.Tensor = self._product(vectors, self._calls)
        return product


A = symmetric()
T = torch.as_tensor(A)
T32 = T.float()
SKEW = np.triu(A, 1) - np.triu(A, 1).T
HERMITIAN = A + 1j * SKEW
NOISE = torch.Generator().manual_seed(0)


def _skew_of(size: int) -> Array:
    noise = np.random.default_rng(0).normal(size=(size, size))
    return np.asarray(noise - noise.T)


def _linear(matvec: Callable[[Array], Any], dtype: Any = np.float64, size: int = SIZE) -> LinearOperator:
    return LinearOperator((size, size), matvec=matvec, dtype=dtype)


def _in_place(vectors: torch.Tensor, _: int) -> torch.Tensor:
    return vectors.copy_(vectors @ T)


def _spoiled(vectors: torch.Tensor, _: int) -> torch.Tensor:
    product = vectors @ T
    vectors.zero_()
    return product


_BUFFER = torch.empty(1, SIZE, dtype=torch.float64)


def _one_buffer(vectors: torch.Tensor, _: int) -> torch.Tensor:
    if len(vectors) > 1:
        return vectors @ T
    return torch.mm(vectors, T, out=_BUFFER)


def _real_of(hermitian: Array) -> Array:
    return np.block([[hermitian.real, -hermitian.imag], [hermitian.imag, hermitian.real]])


def _times_complex() -> None:
    operator, x = Operator(lambda v, _: v @ T), A[0] + 1j * A[1]
    np.testing.assert_allclose(operator @ x, A @ x)


def _everything_at(scale: float, dtype: torch.dtype) -> None:
    matrix = A * scale if dtype == torch.float64 else (A * scale).astype(np.float32).astype(np.float64)
    own = torch.as_tensor(matrix).to(dtype)
    right(Operator(lambda v, _: v @ own, dtype), matrix / scale * scale)
    rough = 1e-5 * scale
    with np.errstate(over="ignore"):
        exact = float(np.trace(matrix)), float(np.linalg.norm(matrix / scale)) * scale
    assert abs(trace(Operator(lambda v, _: v @ own, dtype)).value - exact[0]) < rough
    assert abs(frobenius_norm(Operator(lambda v, _: v @ own, dtype)).value - exact[1]) < rough
    values = np.linalg.eigvalsh(matrix)
    density = spectral_density(Operator(lambda v, _: v @ own, dtype), vectors=2)
    np.testing.assert_allclose([density.smallest, density.largest], values[[0, -1]], rtol=0, atol=rough)


def _asked(**options: Any) -> Callable[[], Any]:
    return lambda: extreme_eigenpairs(A, **options)


DTYPES: dict[str, Any] = {
    "float32 array": A.astype(np.float32),
    "float16 array": A.astype(np.float16),
    "long double array": A.astype(np.longdouble),
    "big-endian array": A.astype(">f8"),
    "Fortran-ordered array": np.asfortranarray(A),
    "array with negative strides": A[::-1, ::-1],
    "read-only array": np.broadcast_to(np.float64(3.0), (SIZE, SIZE)),
    "integer array": np.round(3 * A).astype(np.int64),
    "unsigned array": np.round(3 * A * A).astype(np.uint8),
    "Boolean array": A > 0,
    "numpy matrix": np.asmatrix(A),
    "sparse CSR matrix": scipy.sparse.csr_matrix(A),
    "sparse COO array": scipy.sparse.coo_array(A),
    "sparse integers": scipy.sparse.csr_matrix(np.round(3 * A).astype(int)),
    "LinearOperator of an array": aslinearoperator(A),
    "LinearOperator of a float32 array": aslinearoperator(A.astype(np.float32)),
    "LinearOperator of a function": _linear(lambda x: A @ x),
    "LinearOperator that rounds to float32": _linear(
        lambda x: A.astype(np.float32) @ x.astype(np.float32), np.float32
    ),
    "sum of LinearOperators": aslinearoperator(A) + aslinearoperator(np.eye(SIZE)),
    "tensor": T,
    "float32 tensor": T32,
    "bfloat16 tensor": T.bfloat16(),
    "half tensor": T.half(),
    "integer tensor": (3 * T).round().long(),
    "tensor that requires a gradient": T.clone().requires_grad_(),
    "transposed tensor": T.T,
    "sparse tensor": T.to_sparse(),
    "sparse CSR tensor": T.to_sparse_csr(),
    "tensor of an expanded number": torch.ones(1, 1).expand(SIZE, SIZE),
    "float32 SymmetricOperator": Operator(lambda v, _: v @ T32, torch.float32),
    "products in a wider dtype": Operator(lambda v, _: v.double() @ T, torch.float32),
    "products in a narrower dtype": Operator(lambda v, _: v @ T, torch.float64),
    "products that require a gradient": Operator(lambda v, _: v @ T.clone().requires_grad_()),
    "products in the input's place": Operator(_in_place),
    "input that is spoiled": Operator(_spoiled),
    "one buffer for all products": Operator(_one_buffer),
}


def _dense(matrix: Any) -> Array:
    if isinstance(matrix, (SymmetricOperator, LinearOperator)):
        return np.asarray(matrix @ np.eye(SIZE), np.float64)
    if isinstance(matrix, torch.Tensor):
        return matrix.detach().to_dense().double().numpy()
    if scipy.sparse.issparse(matrix):
        return np.asarray(matrix.toarray(), np.float64)
    return np.asarray(matrix, np.float64)


def _of_dtype(matrix: Any) -> None:
    right(matrix, _dense(matrix))


STRUCTURES: dict[str, Array] = {
    "zero": np.zeros((SIZE, SIZE)),
    "identity": np.eye(SIZE),
    "minus identity": -np.eye(SIZE),
    "rank one": np.outer(A[0], A[0]),
    "negative rank one": -np.outer(A[0], A[0]),
    "1 x 1": np.array([[3.0]]),
    "1 x 1, zero": np.array([[0.0]]),
    "2 x 2 exchange": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "diagonal": np.diag(np.arange(SIZE, dtype=np.float64)),
    "anti-diagonal": np.fliplr(np.eye(SIZE)).copy(),
    "all ones": np.ones((SIZE, SIZE)),
    "two blocks": np.kron(np.eye(2), symmetric(SIZE // 2)),
    "a projector": np.linalg.eigh(A)[1][:, :4] @ np.linalg.eigh(A)[1][:, :4].T,
    "graded": np.diag(2.0 ** -np.arange(0, 36, 3)),
    "far from zero": A + 1e6 * np.eye(SIZE),
    "far below zero": A - 1e6 * np.eye(SIZE),
    "permutation": np.eye(SIZE)[[1, 0, *range(2, SIZE)]],
    "path of a graph": np.diag(np.ones(SIZE - 1), 1) + np.diag(np.ones(SIZE - 1), -1),
    "positive definite": A @ A,
    "Hilbert": 1.0 / (1 + np.add.outer(np.arange(SIZE), np.arange(SIZE))),
    "Hermitian as a real matrix of twice the size": _real_of(HERMITIAN),
}


def _structure(matrix: Array, dtype: torch.dtype) -> None:
    size, own = len(matrix), torch.as_tensor(matrix).to(dtype)
    smallest = min(1, size - 1)
    right(
        Operator(lambda v, _: v @ own, dtype, size), own.double().numpy(), min(2, size - smallest), smallest
    )


NOT_OPERATORS: list[tuple[str, Any, str]] = [
    ("None", None, "a NoneType is not an operator"),
    ("a word", "hessian", "a str is not an operator"),
    ("a list", [[1.0, 0.0], [0.0, 1.0]], "a list is not an operator"),
    ("a number", 3.0, "a float is not an operator"),
    ("a function", lambda x: x, "a function is not an operator"),
    ("a 0-d array", np.array(3.0), "is square; this one has shape ()"),
    ("a vector", np.ones(4), "is square; this one has shape (4,)"),
    ("a stack of matrices", np.ones((2, 3, 3)), "is square; this one has shape (2, 3, 3)"),
    ("a tensor that is a vector", torch.ones(4), "is square; this one has shape (4,)"),
    ("a rectangle", np.ones((3, 4)), "is square; this one has shape (3, 4)"),
    ("an empty matrix", np.ones((0, 0)), "the operator is empty"),
    ("an empty operator", Operator(lambda v, _: v, size=0), "the operator is empty"),
    ("words", np.array([["a", "b"], ["b", "a"]]), "entries of type <U1; give real numbers"),
    ("dates", np.zeros((2, 2), "datetime64[s]"), "give real numbers"),
    ("objects", np.array([[1, None], [None, 1]], dtype=object), "entries of type object"),
    ("a tensor on no device", torch.ones(3, 3, device="meta"), "a Tensor is not an operator"),
    ("complex Hermitian", HERMITIAN, "the operator is complex"),
    ("complex, single precision", HERMITIAN.astype(np.complex64), "the operator is complex"),
    ("complex without an imaginary part", A.astype(complex), "the operator is complex"),
    ("complex tensor", torch.as_tensor(HERMITIAN), "the operator is complex"),
    ("complex sparse matrix", scipy.sparse.csr_matrix(HERMITIAN), "the operator is complex"),
    ("complex LinearOperator", aslinearoperator(HERMITIAN), "the operator is complex"),
    ("complex products that were promised real", _linear(lambda x: HERMITIAN @ x), "the operator is complex"),
    ("complex products of a tensor", Operator(lambda v, _: v + 1j * v), "products are complex"),
    ("antisymmetric", SKEW, "the operator is not symmetric"),
    ("antisymmetric, 80", _skew_of(80), "the operator is not symmetric"),
    ("antisymmetric, 300", _skew_of(300), "the operator is not symmetric"),
    ("antisymmetric in float32", Operator(lambda v, _: v @ torch.as_tensor(SKEW).float(), torch.float32),
     "the operator is not symmetric"),
    ("upper triangular", np.triu(A), "the operator is not symmetric"),
    ("a little asymmetric", A + 1e-5 * SKEW, "the operator is not symmetric"),
    ("asymmetric at 1e20", 1e20 * (A + 0.1 * SKEW), "the operator is not symmetric"),
    ("asymmetric at 1e-25", 1e-25 * (A + 0.1 * SKEW), "the operator is not symmetric"),
    ("a rotation", np.roll(np.eye(SIZE), 1, axis=0), "the operator is not symmetric"),
    ("another one each time", Operator(lambda v, n: v @ T * (1 + 0.1 * n)), "differ by"),
    ("noise in the products", Operator(lambda v, _: v @ T + 0.1 * torch.randn(v.shape, generator=NOISE)),
     "two products of the operator with one vector differ"),
    ("affine", Operator(lambda v, _: v @ T + 1.0), "the operator is not symmetric"),
    ("a square of the vector", Operator(lambda v, _: v * v), "the operator is not symmetric"),
    ("NaN in it", np.where(np.eye(SIZE) > 0, np.nan, A), "not finite"),
    ("infinity in it", np.where(np.eye(SIZE) > 0, np.inf, A), "not finite"),
    ("NaN in the 5th product", Operator(lambda v, n: v @ T * (np.nan if n == 5 else 1)), "not finite"),
    ("products too large for float32",
     Operator(lambda v, _: v.double() @ T * 1e300, torch.float32), "not finite"),
    ("products None", Operator(lambda v, _: None), "is NoneType; return a tensor"),
    ("products an array", Operator(lambda v, _: v.numpy()), "return a tensor of the same shape"),
    ("products too short", Operator(lambda v, _: v[:, 1:]), "is of shape (1, 11)"),
    ("products too long", Operator(lambda v, _: torch.cat([v, v], 1)), "is of shape (1, 24)"),
    ("products flattened", Operator(lambda v, _: (v @ T).flatten()), "is of shape (12,)"),
    ("products transposed", Operator(lambda v, _: (v @ T).T), "is of shape (12, 1)"),
    ("products a number", Operator(lambda v, _: v.sum()), "is of shape ()"),
    ("LinearOperator, products too short", _linear(lambda x: x[:-1]), "a product with the operator failed"),
    ("LinearOperator with products None", _linear(lambda x: None), "a product with the operator failed"),
    ("denormal float32", Operator(lambda v, _: v @ (T32 * 1e-20) * 1e-22, torch.float32), "cannot resolve"),
    ("denormal float64", A * 1e-310, "cannot resolve"),
]  # fmt: skip

REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    ("no pair", {"largest": 0, "smallest": 0}, "asks for no eigenpair"),
    ("a negative number of pairs", {"largest": -1}, "asks for no eigenpair"),
    ("half a pair", {"largest": 1.5}, "largest=1.5 is no whole number"),
    ("a word of pairs", {"smallest": "all"}, "smallest='all' is no whole number"),
    ("None pairs", {"largest": None}, "largest=None is no whole number"),
    ("more pairs than there are", {"largest": 10, "smallest": 3}, "ask for at most 12"),
    ("tol 0", {"tol": 0}, "between 0 and 1"),
    ("tol 1", {"tol": 1}, "between 0 and 1"),
    ("tol below 0", {"tol": -1e-3}, "between 0 and 1"),
    ("tol NaN", {"tol": float("nan")}, "between 0 and 1"),
    ("rtol 0", {"rtol": 0}, "has to be positive"),
    ("rtol NaN", {"rtol": float("nan")}, "has to be positive"),
    ("no products", {"solver": Lanczos(max_products=0)}, "allow at least 4"),
    (
        "too few products",
        {"largest": 5, "smallest": 2, "solver": Lanczos(max_products=8)},
        "allow at least 9",
    ),
    ("a basis of nothing", {"solver": Lanczos(max_basis=0)}, "allow at least 5"),
    (
        "a basis without room",
        {"largest": 4, "smallest": 2, "solver": Lanczos(max_basis=8)},
        "allow at least 9",
    ),
    ("an unknown solver", {"solver": "power"}, "give Lanczos(), Eigsh()"),
    ("a zero start", {"start": np.zeros(SIZE)}, "zero or not finite"),
    ("a start with NaN", {"start": np.full(SIZE, np.nan)}, "zero or not finite"),
    ("a start of another size", {"start": np.ones(5)}, "a start vector has shape (5,)"),
    ("no start vectors", {"start": []}, "leave `start` out"),
    ("start vectors that cancel", {"start": [A[0], -A[0]]}, "cancel each other"),
    ("a number for a start", {"start": 3}, "start="),
    ("a word for a start", {"start": "random"}, "start="),
    ("a negative seed", {"seed": -(2**70)}, "seed="),
    ("a word for a seed", {"seed": "zero"}, "seed="),
]

ANSWERED: list[tuple[str, Callable[[], Any]]] = [
    ("all pairs from the upper end", lambda: right(A, A, SIZE, 0)),
    ("all pairs from the lower end", lambda: right(A, A, 0, SIZE)),
    ("all pairs from both ends", lambda: right(A, A, 7, 5)),
    ("numpy's whole numbers", lambda: right(A, A, np.int64(2), np.int8(1))),  # type: ignore[arg-type]
    ("a larger basis than the space", lambda: extreme_eigenpairs(A, solver=Lanczos(max_basis=1000))),
    ("rtol without a limit", lambda: extreme_eigenpairs(A * 0, rtol=float("inf"))),
    ("a seed beyond 32 bits", lambda: extreme_eigenpairs(A, seed=2**60)),
    ("a complex vector to a real operator", _times_complex),
]

SCALES = [
    (scale, dtype)
    for scales, dtype in (
        ((1e-36, 1e-30, 1e-25, 1e-20, 1e10, 1e20, 1e30, 1e36), torch.float32),
        ((1e-300, 1e-200, 1e-160, 1e160, 1e200, 1e300), torch.float64),
    )
    for scale in scales
]

CASES = [
    *(Case(f"an operator: {name}", lambda m=matrix: _of_dtype(m)) for name, matrix in DTYPES.items()),
    *(
        Case(f"{name}, {str(dtype)[6:]}", lambda m=matrix, d=dtype: _structure(m, d))
        for name, matrix in STRUCTURES.items()
        for dtype in (torch.float64, torch.float32)
    ),
    *(Case(f"scale {s:.0e} in {str(d)[6:]}", lambda s=s, d=d: _everything_at(s, d)) for s, d in SCALES),
    *(
        Case(f"no operator: {name}", lambda m=matrix: extreme_eigenpairs(m), sentence)
        for name, matrix, sentence in NOT_OPERATORS
    ),
    *(Case(f"request: {name}", _asked(**options), sentence) for name, options, sentence in REQUESTS),
    *(Case(name, use) for name, use in ANSWERED),
    Case("zeros by eigsh", lambda: extreme_eigenpairs(np.zeros((9, 9)), solver=Eigsh()), "eigsh failed"),
    *(
        Case(f"{name} by eigsh", lambda m=matrix: extreme_eigenpairs(m, solver=Eigsh()), "not symmetric")
        for name, matrix in (("antisymmetric", SKEW), ("antisymmetric, 80,", _skew_of(80)))
    ),
    *(
        Case(f"density: {name}", lambda m=matrix: spectral_density(m), sentence)
        for name, matrix, sentence in NOT_OPERATORS
        if name in ("None", "antisymmetric", "complex Hermitian", "NaN in it", "an empty matrix")
    ),
    *(
        Case(f"trace: {name}", lambda m=matrix: trace(m), sentence)
        for name, matrix, sentence in NOT_OPERATORS
        if name in ("None", "complex Hermitian", "NaN in it", "an empty matrix", "products None")
    ),
]  # fmt: skip
