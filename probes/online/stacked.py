"""A group: probes whose inputs have one shape, so that they advance in one batched product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thermoscope.errors import ProbeError

from ..features.buffers import stacked

__all__ = ["Group", "Terms"]

_CONSTANT = 1e-6  # a feature that varies less than this share of its mean is rounding noise
_LOOK_EVERY = 10  # steps between updates of the running statistics, after as many first steps
_MOMENTUM = 0.01  # weight of a new batch in them, after the first hundred updates
_CACHED = 2**18  # numbers that fit a processor's cache
_SCORE_MOMENTUM = 0.02
_LARGE, _PARTS = 4096, 16  # from how many features a product is split, and in how many


class Group:
    """The probes on G layers: `weights[r]` is (G, outputs, size) for learning rate r.

    The targets' outputs stand one behind another; with several rates, `folded` and `terms` have the rates'
    outputs behind one another too.
    """

    def __init__(
        self,
        layers: Sequence[str],
        size: int,
        positions: tuple[int, ...],
        outputs: int,
        lrs: int,
        targets: int,
        device: torch.device,
    ):
        count = len(layers)
        self.layers, self.size, self.positions = list(layers), size, positions
        real: Any = {"dtype": torch.float32, "device": device}  # whatever the user's default dtype is
        self.weights = [torch.zeros(count, outputs, size, **real) for _ in range(lrs)]
        self.biases = [torch.zeros(count, outputs, **real) for _ in range(lrs)]
        self.mean = torch.zeros(count, size, **real)
        self.var = torch.ones(count, size, **real)
        self.score = torch.full((count, lrs * targets), float("inf"), **real)
        self.fault = torch.zeros(count, dtype=torch.bool, device=device)
        self._gradient: torch.Tensor | None = None  # kept: fresh pages for it cost more than the product
        self.steps = 0

    def gather(
        self, features: Mapping[str, torch.Tensor], which: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Rows of these layers, (G, rows, size), and the positions of each example in this batch."""
        layers = self.layers if which is None else [self.layers[i] for i in which]
        rows = [features[layer].flatten(0, -2).to(self.mean.device) for layer in layers]
        positions = {tuple(features[layer].shape[1:-1]): layer for layer in layers}
        if len(positions) > 1:
            raise ProbeError(
                f"layers {' and '.join(map(repr, positions.values()))} had the same positions before and now "
                f"have {' and '.join(map(str, positions))}; keep the input size fixed."
            )
        return stacked(rows), next(iter(positions))

    def moments(self, x: torch.Tensor, reduce: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (G, size) of a batch's features; notes a fault where these are not finite."""
        n = reduce(torch.full((), float(x.shape[1]), dtype=torch.float32, device=x.device))
        mean = reduce(x.sum(1)) / n
        squares = torch.zeros_like(mean)
        for part in x.split(max(1, _CACHED // mean.numel()), dim=1):  # a copy of x would not fit the cache
            squares += (part - mean[:, None]).square_().sum(1)
        var = reduce(squares) / n
        self.fault |= ~var.isfinite().all(1)
        return mean, var

    def is_due(self) -> bool:
        """Whether the running statistics are to be updated at this step."""
        return self.steps < _LOOK_EVERY or self.steps % _LOOK_EVERY == 0

    def take_in(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Update the running mean and variance with a batch's; those of a layer at fault stay."""
        # The running average of all batches at first, an exponential one later: features move as the
        # model trains. Chan's formula for the variance of a mixture.
        # A shorter memory would forget features that are rarely active, and take them for constant.
        updates = min(self.steps, _LOOK_EVERY + self.steps // _LOOK_EVERY - 1)
        weight = max(1 / (updates + 1), _MOMENTUM)
        difference = mean - self.mean
        new_var = torch.lerp(self.var, var, weight) + weight * (1 - weight) * difference.square() * (
            self.steps > 0
        )
        self.mean = torch.where(self.fault[:, None], self.mean, self.mean + weight * difference)
        self.var = torch.where(self.fault[:, None], self.var, new_var)

    def _scale(self) -> torch.Tensor:
        """1 / (std sqrt(size)), and 0 for features that are constant up to rounding: they say nothing."""
        constant = self.var <= (self.mean * _CONSTANT).square()
        return torch.where(constant, 0, (self.var * self.size).rsqrt())

    def _parameters(self) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.weights) == 1:
            return self.weights[0], self.biases[0]
        return torch.cat(self.weights, 1), torch.cat(self.biases, 1)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (G, outputs, size) and biases (G, outputs) that act on the features as they are.

        W (x - mean) s + b = (W s) x + (b - (W s) mean), with s = 1 / (std sqrt(size)).
        """
        return self._folded(self._scale())

    def _folded(self, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._parameters()
        weight = weight * scale[:, None]
        return weight, bias - torch.bmm(weight, self.mean[..., None]).squeeze(2)

    def terms(self, x: torch.Tensor, which: Sequence[int] | None = None) -> Terms:
        """The product of rows (G, rows, size) with these layers' probes, in its cheaper form."""
        mean, scale = self.mean, self._scale()
        rewrites_rows = x[0].numel() < self.weights[0][0].numel()  # few rows, many classes
        weight, bias = self._parameters() if rewrites_rows else self._folded(scale)
        if which is not None:
            weight, bias, mean, scale = weight[which], bias[which], mean[which], scale[which]
        if rewrites_rows:
            return Terms((x - mean[:, None]) * scale[:, None], weight, bias, None, None)
        return Terms(x, weight, bias, mean, scale)

    def unfold(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Set the parameters so that `folded()` gives these."""
        bias = bias + torch.bmm(weight, self.mean[..., None]).squeeze(2)
        scale = self._scale()[:, None]
        weight = torch.where(scale > 0, weight / scale, 0)
        outputs = self.biases[0].shape[1]
        for w, own in zip(self.weights, weight.split(outputs, 1), strict=True):
            w.copy_(own)
        for b, own in zip(self.biases, bias.split(outputs, 1), strict=True):
            b.copy_(own)

    def set_gradients(self, terms: Terms, d: torch.Tensor, reduce: Any) -> None:
        """Set the parameters' gradients from those in the logits, d (G, rows, lrs x outputs)."""
        if self._gradient is None:
            self._gradient = torch.empty(
                len(self.layers), d.shape[2], self.size, dtype=torch.float32, device=d.device
            )
        weight, bias = terms.gradients(d, out=self._gradient)
        weight, bias = reduce(weight), reduce(bias)
        if weight.is_cuda:  # elsewhere a fault stops the step; here it is seen later
            weight.masked_fill_(self.fault[:, None, None], 0)
            bias.masked_fill_(self.fault[:, None], 0)
        outputs = self.biases[0].shape[1]
        for r, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            block = slice(r * outputs, (r + 1) * outputs)
            # torch's fused Adam on the CPU reads a strided gradient as if it were contiguous.
            w.grad, b.grad = weight[:, block].contiguous(), bias[:, block].contiguous()

    def note_losses(self, loss: torch.Tensor) -> None:
        """Keep a running average of the training losses (G, lrs x targets)."""
        old = self.score
        new = torch.where(old.isfinite(), torch.lerp(old, loss, _SCORE_MOMENTUM), loss)
        self.score = torch.where(loss.isfinite(), new, old)

    def state_dict(self, optimizer: torch.optim.Adam | None) -> dict[str, Any]:
        """Parameters, statistics and what the optimizer remembers of them."""
        moments = (
            [] if optimizer is None else [optimizer.state.get(p, {}) for p in self.weights + self.biases]
        )
        return {
            "layers": list(self.layers),
            "size": self.size,
            "positions": list(self.positions),
            "steps": self.steps,
            "parameters": [p.clone() for p in self.weights + self.biases],
            "statistics": [self.mean.clone(), self.var.clone(), self.score.clone()],
            "moments": [{k: v.clone() for k, v in moment.items()} for moment in moments],
        }

    def load_state_dict(self, state: Mapping[str, Any], optimizer: torch.optim.Adam) -> None:
        """Take over what `state_dict` gave."""
        device = self.mean.device
        self.steps = int(state["steps"])
        statistics = [t.to(device, copy=True) for t in state["statistics"]]
        if [t.shape for t in statistics] != [t.shape for t in (self.mean, self.var, self.score)]:
            raise ValueError("statistics of another shape")
        self.mean, self.var, self.score = statistics
        for p, value, moment in zip(
            self.weights + self.biases, state["parameters"], state["moments"], strict=True
        ):
            p.copy_(value)
            if moment:
                optimizer.state[p] = {k: v.to(device, copy=True) for k, v in moment.items()}


@dataclass(frozen=True)
class Terms:
    """A product W z + b of standardised features z = (x - mean) s, in one of two forms.

    Either z itself and the weights as they are; or x, and weights into which mean and scale s are folded.
    """

    rows: torch.Tensor  # z or x, (G, rows, size)
    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor | None
    scale: torch.Tensor | None

    @property
    def _splits(self) -> bool:
        """Whether the features of a single large layer are cut in parts, for all cores to have work."""
        count, _, size = self.rows.shape
        return count == 1 and size >= _LARGE and size % _PARTS == 0 and self.rows.device.type == "cpu"

    def logits(self) -> torch.Tensor:
        """The product, (G, rows, outputs)."""
        weight, rows = self.weight, self.rows
        if self._splits:
            weight, rows = _parts(weight), _parts(rows)
        # This order is up to five times faster on a CPU than x W^T, outputs being few.
        product = torch.bmm(weight, rows.transpose(1, 2))
        if self._splits:
            product = product.sum(0, keepdim=True)
        return product.transpose(1, 2).contiguous().add_(self.bias[:, None])

    def gradients(self, d: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients in the unfolded weight (`out`) and bias from those in the logits, d (G, rows, outputs).

        dW = D^T z = (D^T x - (D^T 1) mean^T) s.
        """
        bias, weight = d.sum(1), out
        if self._splits:
            _parts(out).copy_(torch.bmm(d.transpose(1, 2).expand(_PARTS, -1, -1), _parts(self.rows)))
        else:
            torch.bmm(d.transpose(1, 2), self.rows, out=out)
        if self.mean is not None and self.scale is not None:
            weight.baddbmm_(bias[..., None], self.mean[:, None], alpha=-1).mul_(self.scale[:, None])
        return weight, bias


def _parts(matrix: torch.Tensor) -> torch.Tensor:
    """A view of (1, n, size) as (parts, n, size / parts)."""
    cut: torch.Tensor = matrix[0].unflatten(1, (_PARTS, -1))
    return cut.transpose(0, 1)
