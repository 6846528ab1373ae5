"""Random subsets and projections: the same for ever, on every machine, and fair."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probes.features.random_features import random_signs, random_subset


@given(population=st.integers(1, 10**12), share=st.floats(0, 1), seed=st.integers(0, 2**40), name=st.text())
@settings(max_examples=60, deadline=None)
def test_distinct_sorted_and_in_range(population: int, share: float, seed: int, name: str) -> None:
    k = int(share * min(population, 500))
    chosen = random_subset(population, k, seed=seed, name=name)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == k
    assert all(0 <= index < population for index in chosen.tolist())


def test_golden_values() -> None:
    """Written down on the day the stream was made; a saved probe depends on them."""
    assert random_subset(10**6, 6, seed=0, name="layer1").tolist() == [
        37375,
        106686,
        331897,
        349729,
        755942,
        898757,
    ]
    assert random_signs(2, 8, seed=0, name="layer1").int().tolist() == [
        [-1, -1, -1, -1, 1, -1, -1, 1],
        [-1, 1, -1, 1, 1, 1, -1, -1],
    ]


def test_seed_and_name_choose_the_stream() -> None:
    streams = [random_subset(10**9, 4, seed=s, name=n).tolist() for s, n in [(0, "a"), (1, "a"), (0, "b")]]
    assert len({tuple(stream) for stream in streams}) == 3


def test_every_member_is_equally_likely() -> None:
    counts = np.zeros(20)
    for seed in range(2000):
        counts[random_subset(20, 5, seed=seed, name="fair").numpy()] += 1
    # Inclusions of one draw are negatively correlated, which shrinks chi-square by (N - k) / (N - 1).
    statistic = ((counts - 500) ** 2 / 500).sum() / (1 - 5 / 20) * (19 / 20)
    assert 1e-4 < stats.chi2.sf(statistic, df=19) < 1 - 1e-4


def test_every_pair_is_equally_likely() -> None:
    pairs = [tuple(random_subset(6, 2, seed=seed, name="pairs").tolist()) for seed in range(3000)]
    counts = np.unique([6 * a + b for a, b in pairs], return_counts=True)[1]
    assert len(counts) == 15
    assert stats.chisquare(counts).pvalue > 1e-4


def test_signs_are_fair_and_independent() -> None:
    signs = random_signs(400, 100, seed=3, name="x").double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 5 / 200
    cosines = signs.T @ signs / 400 - torch.eye(100)
    assert abs(float(cosines.square().mean()) - 1 / 400) < 0.2 / 400


def test_same_in_another_process() -> None:
    code = (
        "from probes.features.random_features import random_subset as r;"
        "print(r(10**9, 5, seed=7, name='é').tolist())"
    )
    env = {"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert printed.strip() == str(random_subset(10**9, 5, seed=7, name="é").tolist())


def test_cost_does_not_grow_with_the_population() -> None:
    tracemalloc.start()
    begin = time.perf_counter()
    random_subset(10**9, 1000, seed=0, name="large")
    elapsed, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert elapsed < 1
    assert peak < 2**20
