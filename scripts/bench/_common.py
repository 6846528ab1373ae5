"""What the benchmarks share: alternating timing, peak memory of a variant, and the closing line of JSON."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from analysis.runs.run import versions


def alternate(variants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of each call, the variants taking turns so that a machine's drift meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(warmup + repeats):
        for name, run in variants.items():
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if i >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of one variant's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def peak_memory(function: Callable[..., Any], *arguments: Any) -> float:
    """MiB: the peak of a fresh process that runs the function (on a GPU: of its allocations)."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak, function, arguments).result()


def _peak(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    function(*arguments)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent that started us
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finish(**figures: Any) -> None:
    """The line of JSON that a benchmark ends with."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = {"device": name, "threads": torch.get_num_threads(), **versions()}
    print(json.dumps({**figures, **machine}))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
