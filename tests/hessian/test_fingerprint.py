"""The fingerprint of what was read: any order of the examples, not another bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hessian.empirical_risk.fingerprint import fingerprint

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


def example(dtype: torch.dtype, shape: tuple[int, ...] = (9, 5)) -> torch.Tensor:
    numbers = torch.randint(1, 100, shape, generator=torch.Generator().manual_seed(0))
    return (numbers % 2).to(dtype) if dtype == torch.bool else numbers.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_examples_in_another_order_and_other_batches_are_the_same(dtype: torch.dtype) -> None:
    x, y = example(dtype), torch.arange(9)
    whole = fingerprint((x, y))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert fingerprint((x[order], y[order])) == whole
    parts = sum(fingerprint((x[a:b], y[a:b])) for a, b in ((0, 1), (1, 6), (6, 9)))
    assert parts % 2**64 == whole % 2**64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_entry_counts(dtype: torch.dtype) -> None:
    x = example(dtype)
    seen = {fingerprint((x, torch.arange(9)))}
    for i in range(9):
        for j in range(5):
            other = x.clone()
            other[i, j] = ~other[i, j] if dtype == torch.bool else other[i, j] + 1
            seen.add(fingerprint((other, torch.arange(9))))
    assert len(seen) == 46


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_counts_and_two_do_not_cancel(bit: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2**63, (3, 4)).astype(np.uint64)
    seen = set()
    for changed in ((), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)):
        other = bits.copy()
        other[1, list(changed)] ^= np.uint64(1) << np.uint64(bit)
        seen.add(fingerprint(torch.from_numpy(other.view(np.float64))))
    assert len(seen) == 6


def test_which_tensor_and_which_example_a_number_is_in_counts() -> None:
    x, y = example(torch.int64, (6, 2)), example(torch.int64, (6, 2)) + 100
    swapped = x.clone()
    swapped[[0, 1], 0] = swapped[[1, 0], 0]  # the columns' sums are the same
    halves = {"both": (x, y), "changed over": (y, x), "one": x, "entries exchanged": (swapped, y)}
    assert len({fingerprint(batch) for batch in halves.values()}) == 4
    assert fingerprint({"a": x, "b": y}) == fingerprint([x, y])


def test_a_batch_that_cannot_be_cut_counts_as_a_whole() -> None:
    x, y = torch.arange(6.0), torch.arange(4.0)
    whole = fingerprint((x, y))
    assert fingerprint((x, y)) == whole
    assert fingerprint((x.flip(0), y)) != whole
    assert fingerprint((x, y, torch.tensor(1.0))) != fingerprint((x, y, torch.tensor(2.0)))
    assert fingerprint((x, torch.tensor(1.0))) != fingerprint((x, torch.tensor(2.0)))


def test_long_rows_are_read_to_their_end_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = example(torch.float32, (40, 33))
    whole = fingerprint(x)
    monkeypatch.setattr("hessian.empirical_risk.fingerprint._CHUNK", 100)
    assert fingerprint(x) == whole
    x[39, 32] += 1
    assert fingerprint(x) != whole


def test_it_does_not_depend_on_strides_or_graphs() -> None:
    x = example(torch.float32)
    assert fingerprint(x.T.contiguous().T) == fingerprint(x) == fingerprint(x.clone().requires_grad_() * 1)
    assert fingerprint("no tensor") == fingerprint("another")
