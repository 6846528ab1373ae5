"""What the reproductions share: MNIST as tensors, and the folder for what they find."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, TensorDataset

from analysis import AnalysisError, DataSplits, load_data
from analysis.runs.run import versions


def parser(description: str) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--data-dir", default="data", help="folder that holds MNIST/ (default: data)")
    result.add_argument(
        "--out", type=Path, default=Path("docs"), help="where figure and table go (default: docs)"
    )
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--quick", action="store_true", help="a small part of the data: does it run?")
    return result


def mnist(options: argparse.Namespace) -> DataSplits:
    """MNIST as tensors: 50,000 training, 10,000 validation and 10,000 test images (a tenth with --quick)."""
    try:
        data = load_data("torchvision:MNIST", data_dir=options.data_dir, seed=options.seed)
    except AnalysisError as error:
        raise SystemExit(str(error)) from None
    part = 10 if options.quick else 1
    splits = [as_tensors(split, part) for split in (data.train, data.valid, data.test)]
    return DataSplits(*splits, num_classes=10)


def as_tensors(split: Any, part: int) -> TensorDataset:
    loader = DataLoader(split, batch_size=1000)
    batches = [batch for i, batch in enumerate(loader) if i % part == 0]
    return TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))


def shuffled(split: Any, batch_size: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(split, batch_size, shuffle=True, generator=generator, drop_last=True)


def in_order(split: Any) -> DataLoader[Any]:
    return DataLoader(split, batch_size=500)


def markdown(table: pd.DataFrame) -> str:
    rows = [[str(index), *map(str, row)] for index, row in zip(table.index, table.to_numpy(), strict=True)]
    lines = [[table.index.name, *table.columns], ["---"] * (1 + len(table.columns)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(
    options: argparse.Namespace, name: str, figures: dict[str, Figure], text: str, command: str
) -> None:
    """Save `NAME.md` with its figures, the command that made them and where it ran."""
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, figure in figures.items():
        figure.savefig(folder / f"{name}{suffix}.png")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {json.dumps(versions())}"
    made = f"\nMade by `{command}` on {machine}.\n"
    (folder / f"{name}.md").write_text(text.rstrip() + "\n" + made)
    print(text)
    print(f"written: {folder / name}.md and {len(figures)} figure(s)")
