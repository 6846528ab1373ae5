"""Small models, and training them so that two runs can be compared bit by bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import _get_current_function_mode

from probes import ProbeSet

CLASSES = 5


class ConvNet(nn.Module):
    """Dropout, BatchNorm, an in-place ReLU called three times, an addition and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.conv2(self.drop(x)))
        x = self.relu(x + y)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Mlp(nn.Sequential):
    """Names `0` to `3`; gives CLASSES logits for 6 numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, CLASSES))


class Tagger(nn.Module):
    """An LSTM over sequences (B, T, 4), padded or packed; `last` answers per sequence, else per token."""

    def __init__(self, *, batch_first: bool = True, packed: bool = False, last: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=batch_first, dropout=0.2, num_layers=2)
        self.head = nn.Linear(6, CLASSES)
        self.packed, self.last, self.time = packed, last, 1 if batch_first else 0

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        if self.packed:
            assert lengths is not None
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.lstm(x)
        return self.head(h[-1] if self.last else out)


class Branching(nn.Module):
    """Control flow that depends on data: torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        for _ in range(int(h.detach().abs().max() * 0) + 2):
            h = torch.relu(h + 1)
        return self.b(h) if h.sum() > 0 else self.b(-h)


def images(count: int = 3, batch: int = 6, size: int = 8, classes: int = CLASSES) -> list[Any]:
    g = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(batch, 3, size, size, generator=g),
            torch.randint(classes, (batch,), generator=g),
        )
        for _ in range(count)
    ]


def vectors(count: int = 4, batch: int = 8, size: int = 6, classes: int = CLASSES) -> list[Any]:
    """Batches whose classes can be learned: the largest of the first numbers."""
    g = torch.Generator().manual_seed(2)
    xs = [torch.randn(batch, size, generator=g) for _ in range(count)]
    return [(x, x[:, :classes].argmax(1)) for x in xs]


def seed_everything(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_streams() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }


Step = Callable[[nn.Module, torch.optim.Optimizer, Any, Any, "ProbeSet | None"], Any]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Any, probes: Any) -> Any:
    """One training step of anybody; the probes step behind it."""
    output = model(x)
    loss = sum(F.cross_entropy(o, y) for o in (output if isinstance(output, tuple) else [output]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if probes is not None:
        probes.step(y)
    return loss.detach()


@dataclass
class Training:
    """A training run to repeat with and without probes."""

    build: Callable[[], nn.Module]
    batches: Iterable[Any]
    layers: Any = "auto"
    step: Step = plain_step
    attach: Callable[[nn.Module], Any] = lambda model: model
    options: dict[str, Any] = field(default_factory=dict)
    sets: int = 1

    def run(self, probed: bool) -> dict[str, Any]:
        """Everything that the run leaves: weights, buffers, optimizer, random streams, losses."""
        seed_everything()
        model = self.build().train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        options = {"num_classes": CLASSES, **self.options}
        sets = [ProbeSet(model, self.layers, **options) for _ in range(self.sets if probed else 0)]
        losses = []
        for x, y in self.batches:
            losses.append(self.step(model, optimizer, x, y, _Together(sets) if probed else None))
        for probes in sets:
            result = probes.state_dict()
            assert result["bank"]["steps"] > 0, "the probes did not train, so this test shows nothing"
            probes.detach()
        assert _get_current_function_mode() is None
        return {
            "weights": dict(model.state_dict()),
            "gradients": [p.grad for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "optimizer": optimizer.state_dict(),
            "streams": random_streams(),
            "losses": losses,
        }


class _Together:
    """Several probe sets, asked to do the same."""

    def __init__(self, sets: list[ProbeSet]) -> None:
        self.sets = sets

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        return lambda *args, **kwargs: [getattr(probes, name)(*args, **kwargs) for probes in self.sets]


def assert_identical(a: Any, b: Any, path: str = "run") -> None:
    """Equal to the bit, through any nest."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        assert (
            torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
            if (a.ndim and a.is_floating_point())
            else torch.equal(a, b)
        ), f"{path} differs"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}[{i}]")
    else:
        assert a == b, path
