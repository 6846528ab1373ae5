"""`Loss` and `ProbeSet` take the same batches, by one convention that both document."""

from __future__ import annotations

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
