"""Models, losses and data small enough for a dense Hessian, shared by the tests of everything built on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from hessian import Loss


class Transformer(nn.Module):
    """One attention block with PyTorch's fused attention, on sequences of 5 vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + mixed).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed: one parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.again = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.again.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(torch.tanh(self.encoder(x)))


@dataclass(frozen=True)
class Case:
    """Something whose Hessian can be written down."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.cross_entropy
    target: Callable[[int, torch.Generator], torch.Tensor] = lambda n, g: torch.randint(3, (n,), generator=g)

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build().to(dtype)

    def batches(self, sizes: tuple[int, ...] = (7, 7, 3), dtype: torch.dtype = torch.float64) -> list[Any]:
        """Batches of unequal sizes."""
        g = torch.Generator().manual_seed(1)
        return [(torch.randn(n, *self.shape, generator=g).to(dtype), self.target_of(n, g)) for n in sizes]

    def target_of(self, n: int, g: torch.Generator) -> torch.Tensor:
        y = self.target(n, g)
        return y.double() if y.is_floating_point() else y

    def loss(self, **options: Any) -> Loss:
        return self.loss_of(self.batches(), **options)

    def loss_of(self, data: Any, **options: Any) -> Loss:
        return Loss(self.model(), self.loss_fn, data, **options)


CASES = [
    Case("mlp", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    Case(
        "regression",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2)),
        (4,),
        F.mse_loss,
        lambda n, g: torch.randn(n, 2, generator=g),
    ),
    Case(
        "cnn",
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 2, 3),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(2, 3),
        ),
        (1, 6, 6),
    ),
    Case(
        "batchnorm",
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3),
            nn.BatchNorm2d(2),
            nn.ELU(inplace=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        (1, 4, 4),
    ),
    Case("transformer", Transformer, (5, 4)),
    Case("lstm", Recurrent, (6, 3)),
    Case("tied", Tied, (4,), F.mse_loss, lambda n, g: torch.randn(n, 4, generator=g)),
]


def dense(case: Case, model: nn.Module) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss, gradient (n,) and Hessian (n, n), on all examples as one batch, in eval mode.

    Not by `torch.func.hessian`, which is wrong for `nn.LayerNorm` (not even symmetric; torch 2.15).
    """
    x, y = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    names = dict(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in names.values()])

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([p.numel() for p in names.values()])
        weights = {k: part.view(p.shape) for (k, p), part in zip(names.items(), parts, strict=True)}
        return case.loss_fn(functional_call(model.eval(), weights, (x,)), y)

    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        value, gradient = torch.func.grad_and_value(loss)(theta)[::-1]
        return float(value), gradient.numpy(), torch.autograd.functional.hessian(loss, theta).numpy()
