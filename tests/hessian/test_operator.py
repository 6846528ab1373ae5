"""Operators as scipy and torch see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from hessian.empirical_risk.batch import moved
from hessian.products.symmetric import SymmetricOperator
from thermoscope.errors import first_line


class Wider(SymmetricOperator):
    """Vectors in float32, products in float64."""

    def __init__(self, matrix: np.ndarray):
        super().__init__(len(matrix), torch.device("cpu"), torch.float32)
        self._matrix = torch.as_tensor(matrix)

    def _multiply(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors.double() @ self._matrix


def test_products_have_the_dtype_that_the_operator_says() -> None:
    operator = Wider(np.diag([1.0, 2.0, 3.0]))
    assert operator.dtype == np.float32
    for given in (np.ones(3), np.ones((3, 2)), np.ones((3, 2), np.int64)):
        product = operator @ given
        assert product.dtype == np.float32
        np.testing.assert_array_equal(product, np.diag([1.0, 2.0, 3.0]) @ given)
    assert operator.products == 5


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_a_packed_sequence_moves_to_a_device_but_its_sizes_stay(dtype: torch.dtype | None) -> None:
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)])
    there = moved({"x": packed}, torch.device("meta"), dtype)["x"]
    assert isinstance(there, PackedSequence)
    assert (there.data.device.type, there.data.dtype) == ("meta", dtype or torch.float32)
    assert there.batch_sizes.tolist() == [2, 2, 1]


def test_the_first_line_of_an_error_and_of_one_without_words() -> None:
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(KeyError()) == "KeyError: "
