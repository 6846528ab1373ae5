"""What it costs to extract features to a store, and what reading them saves.

    python scripts/bench/store.py [--quick] [--folder PATH]

ResNet-50 with its automatic layers (with --quick ResNet-18 on small images). A bare loop of forwards over the
data and an extraction over the same loader take turns; then all features are read in blocks. The peak memory
of an extraction is that of a fresh process, for some rows and for four times as many.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import alternate, device, finish, peak_memory, ratio
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18, resnet50

from probes import FeatureStore

BLOCK = 1024  # rows read at a time


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Any number of examples in the memory of a few."""

    def __init__(self, rows: int, pixels: int):
        self.rows = rows
        self.images = torch.randn(64, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.images[i % 64], i % 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smaller network and image: about a minute")
    parser.add_argument("--folder", type=Path, help="where to write (default: the temporary folder)")
    options = parser.parse_args()
    rows, rounds = (1280, 2) if options.quick else (960, 3)
    if torch.cuda.is_available():
        rows = 64 * rows
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.quick, rows, rounds)


def measure(folder: Path, quick: bool, rows: int, rounds: int) -> None:
    model, loader = build(quick), images(quick, rows)
    numbers = itertools.count()

    def extract() -> None:
        FeatureStore.extract(model, loader, folder / str(next(numbers)), progress=False)

    seconds = alternate({"forwards": lambda: forwards(model, loader), "extract": extract}, rounds, 1)
    store = FeatureStore.open(folder / "0")
    seconds |= alternate({"read": lambda: read(store)}, rounds, 1)
    speed = {name: rows / statistics.median(times) for name, times in seconds.items()}
    size = sum(store[layer].shape[1] for layer in store.layers)
    print(f"{type(model).__name__}, {rows} rows, {len(store.layers)} layers, {size} numbers per row")
    for name, rate in speed.items():
        print(f"  {name:<8} {rate:10.1f} rows per second", flush=True)
    over = 1 / ratio(seconds, "extract", "forwards")
    gain = speed["read"] / speed["extract"]
    print(f"  extraction over forwards x {over:.3f}, reading over extraction x {gain:.0f}")

    memory = {}
    for count in (rows // 4, rows):
        memory[count] = peak_memory(extract_alone, str(folder / f"memory{count}"), quick, count)
        print(f"  peak memory of an extraction of {count} rows: {memory[count]:.0f} MiB", flush=True)
    finish(
        benchmark="store",
        quick=quick,
        rows=rows,
        numbers_per_row=size,
        rows_per_second=speed,
        extraction_over_forwards=over,
        reading_over_extraction=gain,
        peak_mib=memory,
    )


def build(quick: bool) -> nn.Module:
    torch.manual_seed(0)
    return (resnet18 if quick else resnet50)().to(device()).eval()


def images(quick: bool, rows: int) -> DataLoader[Any]:
    batch = 256 if torch.cuda.is_available() else 32
    return DataLoader(Images(rows, 64 if quick else 224), batch, pin_memory=torch.cuda.is_available())


def forwards(model: nn.Module, loader: DataLoader[Any]) -> None:
    with torch.no_grad():
        for x, _ in loader:
            model(x.to(device(), non_blocking=True))


def read(store: FeatureStore) -> None:
    for layer in store.layers:
        features = store[layer]
        for start in range(0, store.n, BLOCK):
            np.array(features[start : start + BLOCK])


def extract_alone(path: str, quick: bool, rows: int) -> None:
    FeatureStore.extract(build(quick), images(quick, rows), path, progress=False)
    shutil.rmtree(path)


if __name__ == "__main__":
    main()
