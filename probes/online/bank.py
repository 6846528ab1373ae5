"""The bank: linear classifiers on many layers, trained together on the batch just seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from thermoscope.errors import ProbeError

from ..mean_se import Tally
from ..targets import Target
from .labels import Labels
from .stacked import Group

__all__ = ["Bank", "ProbeSpec"]

_STACKED = 4096  # features up to which layers of equal size are stacked for one product
_STATE = {"steps", "lrs", "widths", "units", "groups"}
_CHECK_EVERY = 100  # steps between looks at a GPU's fault flags, each of which waits for the GPU


@dataclass(frozen=True)
class ProbeSpec:
    """The input of one layer's probes: `size` features, one row per example or per position."""

    layer: str
    size: int
    positions: tuple[int, ...] = ()


class Bank:
    """Softmax (or logistic, or linear) regressions on standardised features, trained by Adam.

    Probes of equal input shape form a group and advance in one batched product, unless they are so large
    that stacking their inputs costs more than it saves. Their gradients are written out (for a softmax:
    D = (p - one_hot) / n, dW = D^T X), so no autograd graph exists that could reach the model.
    Standardisation is folded into the weights: the features are read, never rewritten.

    Standardised features are divided by the square root of their number, so that a layer's feature vector
    has length 1 on average and one learning rate suits every layer.

    Rows are averaged over the batch, and over the processes of `process_group` if one is given.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        lrs: Sequence[float],
        process_group: dist.ProcessGroup | None = None,
    ):
        self.targets = dict(targets)
        self.lrs = tuple(lrs)
        self.groups: list[Group] = []
        self.specs: dict[str, ProbeSpec] = {}  # of the layers that have probes
        self._places: dict[str, tuple[Group, int]] = {}
        self._process_group = process_group
        self._optimizer: torch.optim.Adam | None = None
        self._units: dict[str, torch.Tensor] = {}  # of targets that have units: (2, width), shift and scale
        self._label_fault = torch.zeros((), dtype=torch.bool)
        self.steps = 0

    # -- which probes -------------------------------------------------------------------------------

    def add(self, specs: Sequence[ProbeSpec], device: torch.device) -> None:
        """Give these layers probes, untrained: all weights zero, so every answer is equally likely."""
        shapes: dict[tuple[int, tuple[int, ...], str], list[str]] = {}
        for spec in specs:
            alone = spec.layer if spec.size > _STACKED else ""
            shapes.setdefault((spec.size, spec.positions, alone), []).append(spec.layer)
        width = sum(target.width for target in self.targets.values())
        for (size, positions, _), layers in shapes.items():
            try:
                group = Group(layers, size, positions, width, len(self.lrs), len(self.targets), device)
            except RuntimeError as error:  # torch's for memory that there is not
                numbers = len(layers) * size * width * len(self.lrs)
                raise ProbeError(
                    f"there is no memory for the {numbers:,} weights of the probes of layer {layers[0]!r}"
                    f"{' and others' if layers[1:] else ''}: {size:,} features x {width:,} outputs each; "
                    "reduce the layer, or ask for fewer classes."
                ) from error
            self._adopt(group)

    def _adopt(self, group: Group) -> None:
        self.groups.append(group)
        for i, layer in enumerate(group.layers):
            self.specs[layer] = ProbeSpec(layer, group.size, group.positions)
            self._places[layer] = group, i
        if self._optimizer is None:
            fused = group.mean.device.type in ("cpu", "cuda")
            empty = [{"params": [], "lr": lr} for lr in self.lrs]
            self._optimizer = torch.optim.Adam(empty, fused=fused)
        for r, param_group in enumerate(self._optimizer.param_groups):
            param_group["params"] += [group.weights[r], group.biases[r]]

    # -- training -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, features: Mapping[str, torch.Tensor], labels: Labels) -> None:
        """Advance every probe by one step of Adam on the mean loss over these rows.

        Raises:
            ProbeError: for features or labels that are not finite or out of range, before anything has
                changed; on a GPU up to 100 steps later, their gradients taken for zero meanwhile.
        """
        self._label_fault = labels.fault | self._label_fault.to(labels.fault.device)
        rows = [group.gather(features) for group in self.groups]
        for group, (_, positions) in zip(self.groups, rows, strict=True):
            for name in self.targets:
                labels.rows(name, positions, group.layers[0])  # refuses what does not fit
        moments = [
            (group, *group.moments(x, self._sum))
            for group, (x, _) in zip(self.groups, rows, strict=True)
            if group.is_due()
        ]
        looks = self.steps % _CHECK_EVERY == 0 or not any(group.mean.is_cuda for group in self.groups)
        if looks:
            self.raise_faults()  # before anything has changed
        for name, target in self.targets.items():
            if target.has_units and name not in self._units:
                y = labels.values[name]
                self._units[name] = self._fix_units(y[target.counted(y)])
        for group, mean, var in moments:
            group.take_in(mean, var)
        losses = self._set_gradients(rows, labels)
        if looks:
            self.raise_faults()
        assert self._optimizer is not None
        self._optimizer.step()
        self.steps += 1
        for group, loss in zip(self.groups, losses, strict=True):
            group.note_losses(loss)
            group.steps += 1

    def _set_gradients(
        self, rows: Sequence[tuple[torch.Tensor, tuple[int, ...]]], labels: Labels
    ) -> list[torch.Tensor]:
        """Prepare the optimizer's step; the mean losses (G, lrs x targets) of each group."""
        terms = [group.terms(x) for group, (x, _) in zip(self.groups, rows, strict=True)]
        losses: list[torch.Tensor] = [torch.empty(0)] * len(terms)
        # Logits are small: those of all groups that share their labels go through the loss together.
        for positions in {p for _, p in rows}:
            members = [i for i, (_, p) in enumerate(rows) if p == positions]
            counts = [len(self.groups[i].layers) for i in members]
            logits = torch.cat([terms[i].logits() for i in members])
            # Rows that do not count must be finite too: zero times NaN is not zero.
            faults = ~logits.isfinite().flatten(1).all(1)
            of_rows = [
                labels.rows(name, positions, self.groups[members[0]].layers[0]) for name in self.targets
            ]
            loss, gradient = self._loss_and_gradient(logits, of_rows)
            parts = (part.split(counts) for part in (loss, gradient, faults))
            for i, own_loss, own_gradient, fault in zip(members, *parts, strict=True):
                losses[i] = own_loss
                self.groups[i].fault |= fault
                self.groups[i].set_gradients(terms[i], own_gradient, self._sum)
        return losses

    def _loss_and_gradient(
        self, logits: torch.Tensor, of_rows: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean losses (G, lrs x targets), and their gradient in the logits (G, rows, lrs x outputs).

        `of_rows` has each target's labels, and which rows count.
        """
        gradient = torch.empty_like(logits)
        column, losses = 0, []
        for (name, target), (y, counted) in [*zip(self.targets.items(), of_rows, strict=True)] * len(
            self.lrs
        ):
            block = slice(column, column := column + target.width)
            loss, d = target.loss_and_gradient(logits[..., block], self._standard(name, y))
            rows = self._sum(counted.sum().float())
            # Without a row that counts the loss is NaN, which no score takes in, and the gradient zero.
            losses.append(self._sum(loss.masked_fill(~counted, 0).sum(1)) / rows)
            gradient[..., block] = d.masked_fill_(~counted[..., None], 0).div_(rows.clamp(min=1))
        return torch.stack(losses, 1), gradient

    def _fix_units(self, y: torch.Tensor) -> torch.Tensor:
        """Shift and scale (2, width) that standardise the first batch: one rate then suits all units."""
        n = self._sum(torch.full((), float(len(y)), dtype=torch.float32, device=y.device))
        mean = self._sum(y.sum(0)) / n
        std = (self._sum((y - mean).square().sum(0)) / n).sqrt()
        return torch.stack([mean, torch.where(std > 0, std, torch.ones_like(std))])

    def _standard(self, name: str, y: torch.Tensor) -> torch.Tensor:
        if name not in self._units:
            return y
        shift, scale = self._units[name].to(y.device)
        standard: torch.Tensor = ((y - shift) / scale).to(torch.float32)
        return standard

    def centred(self, name: str, y: torch.Tensor) -> torch.Tensor:
        """Labels from which a constant is taken, where they are numbers: their variance stands out so."""
        return y - self._units[name][0].to(y.device) if name in self._units else y

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        if self._process_group is not None:
            dist.all_reduce(value, group=self._process_group)
        return value

    def raise_faults(self) -> None:
        """Raise what went wrong in the steps so far, if anything did; waits for a GPU.

        Raises:
            ProbeError: naming the layers.
        """
        if bool(self._label_fault):
            self._label_fault = torch.zeros_like(self._label_fault)
            raise ProbeError(
                f"labels in one of the last {_CHECK_EVERY} steps are out of range for {self.targets}; check "
                "the labels that the loader gives."
            )
        layers = [
            layer
            for group in self.groups
            for layer, fault in zip(group.layers, group.fault.tolist(), strict=True)
            if fault
        ]
        for group in self.groups:
            group.fault.zero_()
        if layers:
            raise ProbeError(
                f"the features of layer {layers[0]!r} are NaN or infinite"
                + (f" (and those of {len(layers) - 1} more: {', '.join(layers[1:4])})" if layers[1:] else "")
                + "; its probe was not changed by them. Look for overflow or divergence in the model, or "
                "leave the layer out."
            )

    # -- measuring ----------------------------------------------------------------------------------

    @torch.no_grad()
    def measure(
        self, features: Mapping[str, torch.Tensor], labels: Labels, tallies: dict[Any, Tally]
    ) -> None:
        """Add these rows' metrics to `tallies`, one per (layer, target): values (lrs, metrics)."""
        for group in self.groups:
            present = [i for i, layer in enumerate(group.layers) if layer in features]
            if not present:
                continue
            x, positions = group.gather(features, present)
            which = None if len(present) == len(group.layers) else present
            logits = group.terms(x, which).logits()
            if not bool(logits.isfinite().all()):
                group.fault[present] |= ~logits.isfinite().all(2).all(1)
                self.raise_faults()
            blocks = logits.split([t.width for t in self.targets.values()] * len(self.lrs), dim=2)
            for t, (name, target) in enumerate(self.targets.items()):
                y, counted = labels.rows(name, positions, group.layers[0])
                outputs = torch.stack(blocks[t :: len(self.targets)])  # (lrs, G, rows, width)
                if name in self._units:
                    shift, scale = self._units[name].to(outputs.device)
                    outputs = outputs * scale + shift
                values = torch.stack([target.measure(o, y) for o in outputs])  # (lrs, metrics, G, rows)
                per_example = math.prod(positions)
                by_example = values.unflatten(3, (labels.examples, per_example))
                for position, i in enumerate(present):
                    tally = tallies.setdefault((group.layers[i], name), Tally())
                    tally.add(by_example[:, :, position], counted.view(labels.examples, per_example))

    def best_lr(self, layer: str, target: str) -> int:
        """Index of the learning rate with the lowest score: running training loss, or validation loss."""
        group, i = self._find(layer)
        t = list(self.targets).index(target)
        return int(group.score[i, t :: len(self.targets)].argmin())

    def steps_of(self, layer: str) -> int:
        """Training steps that the layer's probes have had."""
        return self._find(layer)[0].steps

    def _find(self, layer: str) -> tuple[Group, int]:
        return self._places[layer]

    # -- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only: loads with `torch.load(..., weights_only=True)`."""
        self.raise_faults()
        return {
            "steps": self.steps,
            "lrs": list(self.lrs),
            "widths": [target.width for target in self.targets.values()],
            "units": dict(self._units),
            "groups": [group.state_dict(self._optimizer) for group in self.groups],
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over the probes of another bank with the same targets and learning rates.

        Raises:
            ProbeError: if they differ.
        """
        if not isinstance(state, Mapping) or not state.keys() >= _STATE:
            raise ProbeError("this is no state of a ProbeSet; give what state_dict() gave.")
        widths = [target.width for target in self.targets.values()]
        if state["widths"] != widths or state["lrs"] != list(self.lrs):
            raise ProbeError(
                f"the saved probes have outputs {state['widths']} and learning rates {state['lrs']}, not "
                f"{widths} and {list(self.lrs)}; build the ProbeSet with the same targets and lr."
            )
        loaded = Bank(self.targets, self.lrs)
        try:
            loaded._units = {name: unit.to(device) for name, unit in state["units"].items()}
            loaded.steps = int(state["steps"])
            for saved in state["groups"]:
                positions = tuple(saved["positions"])
                group = Group(
                    saved["layers"], saved["size"], positions, sum(widths), len(self.lrs), len(widths), device
                )
                loaded._adopt(group)
                assert loaded._optimizer is not None
                group.load_state_dict(saved, loaded._optimizer)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ProbeError(
                f"the saved state of the probes is damaged ({type(error).__name__} at {error})."
            ) from error
        self.groups, self._optimizer = loaded.groups, loaded._optimizer
        self.specs, self._places = loaded.specs, loaded._places
        self._units, self.steps = loaded._units, loaded.steps
