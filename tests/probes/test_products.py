"""The product of features and weights, in each of its forms, against float64."""

from __future__ import annotations

import pytest
import torch

from probes.online.stacked import Group, Terms

LARGE = 8192  # split in parts
ODD = 8193  # too odd to split


@pytest.mark.parametrize("size", [3, 40, LARGE, ODD])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("folds", [True, False])
def test_logits_and_gradients(size: int, layers: int, folds: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, d = (torch.randn(layers, n, m, generator=g) for n, m in ((7, size), (5, size), (7, 5)))
    bias, mean = torch.randn(layers, 5, generator=g), torch.randn(layers, size, generator=g)
    scale = torch.rand(layers, size, generator=g)
    terms = Terms(x, weight, bias, mean if folds else None, scale if folds else None)
    z = (x.double() - mean.double()[:, None]) * scale.double()[:, None] if folds else x.double()
    logits = x.double() @ weight.double().transpose(1, 2) + bias.double()[:, None]
    torch.testing.assert_close(terms.logits().double(), logits, rtol=1e-5, atol=1e-6 * size**0.5 * 50)
    out = torch.empty_like(weight)
    found, found_bias = terms.gradients(d, out)
    assert found is out
    torch.testing.assert_close(found.double(), d.double().transpose(1, 2) @ z, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found_bias.double(), d.double().sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "form"), [(2, "the rows are rewritten"), (50, "the weights are folded")])
def test_both_forms_of_a_group_say_the_same(rows: int, form: str) -> None:
    g = torch.Generator().manual_seed(1)
    group = Group(["a", "b"], 6, (), 4, 1, 1, torch.device("cpu"))
    group.weights[0].normal_(generator=g)
    group.biases[0].normal_(generator=g)
    group.mean.normal_(10, 3, generator=g)
    group.var.uniform_(0.5, 2, generator=g)
    x = 10 + torch.randn(2, rows, 6, generator=g)
    terms = group.terms(x)
    assert (terms.mean is None) == (form == "the rows are rewritten")
    z = (x - group.mean[:, None]).double() / (6 * group.var[:, None].double()).sqrt()
    expected = z @ group.weights[0].double().transpose(1, 2) + group.biases[0].double()[:, None]
    torch.testing.assert_close(terms.logits().double(), expected, rtol=1e-5, atol=1e-5)
    last = group.terms(x[1:], [1]).logits()
    torch.testing.assert_close(last.double(), expected[1:], rtol=1e-5, atol=1e-5)
