"""`Loss` and `ProbeSet` take the same batches, by one convention that both document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hessian import Loss
from probes import default_forward
from probes.user_model import to_device
from thermoscope.batches import logits_of

from .odd_inputs.losses import FORMS

BATCHES = [name for name, (_, data) in FORMS.items() if isinstance(data(), list) and "empty" not in name]


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_means_the_same_to_both_instruments(name: str) -> None:
    build, data = FORMS[name]
    model, total, examples = build(), 0.0, 0
    with torch.no_grad():
        for batch in data():
            output, y = default_forward(model, to_device(batch, torch.device("cpu")))
            logits = logits_of(output)
            assert logits is not None
            total += float(F.cross_entropy(logits, y)) * len(y)
            examples += len(y)
    loss = Loss(model, F.cross_entropy, data())
    assert loss.examples == examples == 12
    assert loss.value() == pytest.approx(total / examples, rel=1e-12)


@dataclass(frozen=True)
class Examples:
    x: torch.Tensor
    y: torch.Tensor
    source: str = "anywhere"


@pytest.mark.parametrize("mode", ["forward_reverse", "reverse_reverse", "retained", "linearized"])
def test_batches_may_be_dataclasses(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    pairs = [
        (
            torch.randn(5, 3, dtype=torch.float64, generator=generator),
            torch.randint(2, (5,), generator=generator),
        )
        for _ in range(3)
    ]
    plain = Loss(model, F.cross_entropy, pairs)
    own = Loss(
        model, None, [Examples(*pair) for pair in pairs], batch_loss=lambda m, b: F.cross_entropy(m(b.x), b.y)
    )
    assert own.examples == plain.examples == 15
    vector = np.linspace(-1, 1, plain.size)
    np.testing.assert_allclose(own.hessian(mode) @ vector, plain.hessian() @ vector, rtol=0, atol=1e-14)
