"""ProbeSet: linear classifier probes on the layers of a model that is being trained, or held fixed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from thermoscope.errors import ProbeError

from .arguments import positive_number, whole_number
from .features.feature_reader import Batch, Settled
from .features.layer_reader import LayerReader
from .features.layout import LayoutText
from .features.patterns import Pattern
from .features.reduction import Reduce
from .online.bank import Bank, ProbeSpec
from .online.early_stopping import EarlyStopping
from .online.labels import Labels
from .online.measurement import Measurement
from .results import ProbeResult
from .targets import Target, as_targets
from .user_model import (
    Forward,
    default_forward,
    device_of,
    held_fixed,
    plain_arithmetic,
    require_forward,
    unwrap,
)

__all__ = ["ProbeSet"]

_NO_FORWARD = (
    "step() needs a training forward before it: call the model itself, in train mode and with gradients "
    "enabled, once for each step (forwards under eval(), no_grad() or a transformation of torch.func never "
    "train a probe; use fit() for a model that is held fixed)."
)


class ProbeSet:
    """Linear classifiers `f_k(h) = softmax(W h + b)` on the features `H_k` of chosen layers.

    Alain & Bengio, *Understanding intermediate layers using linear classifier probes* (2016). Probes read
    copies of the features, so nothing of them reaches the model: training with them gives the same bits.

    Args:
        model: any module. DDP and `torch.compile` wrappers are looked through.
        layers: names, globs, `re.compile` patterns, module types, predicates on `HookPoint`, a list of
            these, or `"auto"`: the input and the blocks that a person would draw. See `Selection`.
        num_classes: of the labels, when there is one set of class labels.
        targets: otherwise what to predict: a `Classification`, `MultiLabel` or `Regression`, a `Target` of
            your own, or several by name.
        exclude: patterns like `layers` for what to leave out.
        reduce: how features become few numbers per example: a reduction, its text (`"auto"`, `"avg:2"`,
            `"subset:1000"`), several in a row, or these by glob, the first match counting. See `Reduction`.
        layout: which dimensions hold what, where the forward does not show it: `"BCHW"` for all layers of
            four dimensions, or letters by glob of names; B is the examples, C the channels, T, L, H, W and D
            are positions.
        lr: Adam's learning rate, one for probes of every size; or several: each layer then has a probe per
            rate and shows the best.
        forward: `forward(model, batch) -> (output, labels)`, for `evaluate` and `fit`; see
            `default_forward`.
        seed: of the random subsets and projections, with each layer's name.
        every: train on every so many calls of `step` only: on the first, the `every + 1`st, ... The forwards
            before the other calls are not read, so they cost next to nothing, and neither do these calls,
            whose labels nobody looks at. Calls are counted, not forwards: micro-batches that are accumulated,
            recomputed checkpoints and the two forwards of an adversarial step come between two calls. The
            probes see fewer batches and lag further behind the model.
        process_group: if given, probes train and are measured on the batches of all its processes.

    Raises:
        ProbeError: for a selection that cannot match; its message names the nearest layers.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Pattern | Iterable[Pattern] = "auto",
        num_classes: int | None = None,
        *,
        targets: Target | Mapping[str, Target] | None = None,
        exclude: Pattern | Iterable[Pattern] = (),
        reduce: Reduce | Mapping[str, Reduce] = "auto",
        layout: LayoutText | None = None,
        lr: float | Sequence[float] = 0.03,
        forward: Forward | None = None,
        seed: int = 0,
        every: int = 1,
        process_group: dist.ProcessGroup | None = None,
    ):
        self.model = unwrap(model)
        self._targets, self._seed = as_targets(num_classes, targets), whole_number("seed", seed)
        rates = lr if isinstance(lr, Iterable) and not isinstance(lr, (str, torch.Tensor)) else (lr,)
        self._lrs = tuple(positive_number("lr", rate) for rate in rates)
        if not self._lrs:
            raise ProbeError("lr=() names no learning rate: give one above 0, or several.")
        self._forward = default_forward if forward is None else forward
        require_forward(self._forward)
        self._process_group = process_group
        self._every, self._calls = whole_number("every", every, least=1), 0
        self._bank = self._new_bank()
        self._layers: list[str] = []
        self._reader = LayerReader(self.model, layers, exclude, reduce, seed, layout)

    # -- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> ProbeSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove every hook; the model is as if there had been no probes. Safe to call twice."""
        self._reader.detach()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the probed layers in execution order; known after the first forward."""
        return tuple(self._layers)

    @property
    def reductions(self) -> dict[str, tuple[str, int]]:
        """What was chosen for each layer: the reduction's text and the features it gives."""
        bound = self._reader.bound
        return {layer: (bound[layer].text, bound[layer].size) for layer in self._layers if layer in bound}

    @property
    def skipped(self) -> dict[str, str]:
        """Layers that `"auto"` chose but that cannot be probed, and why."""
        return dict(self._reader.skipped)

    def state_dict(self) -> dict[str, Any]:
        """Weights, statistics and optimizer state of the probes; loads with `weights_only=True`."""
        with plain_arithmetic(device_of(self.model).type):
            bank = self._bank.state_dict()
        return {"seed": self._seed, "layers": list(self._layers), "calls": self._calls, "bank": bank}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another set with the same targets, learning rates and seed was.

        Raises:
            ProbeError: if they differ, or `state` is no such state; nothing has changed then.
        """
        if not isinstance(state, Mapping) or not {"seed", "layers", "bank"} <= state.keys():
            raise ProbeError("this is no state of a ProbeSet; give what state_dict() gave.")
        if state["seed"] != self._seed:
            raise ProbeError(f"the saved probes used seed={state['seed']}, this set seed={self._seed}.")
        with plain_arithmetic(device_of(self.model).type):
            self._bank.load_state_dict(state["bank"], device_of(self.model))
        self._layers = list(state["layers"])
        self._calls = int(state.get("calls", 0))  # a state of version 0.1 has none
        self._reader.is_armed = self._is_due

    # -- training -----------------------------------------------------------------------------------

    def step(self, y: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
        """Advance every probe on the features of the last training forward; with `every`, if it is time.

        Args:
            y: labels (B,) of that batch, or per position (B, T) or (B, H, W) with `reduce="positions"`;
                by target if there are several.

        Raises:
            ProbeError: without such a forward, for a selection that matched nothing, and for labels or
                features that cannot be used. The model, its gradients and its probes stay as they were.
        """
        if self._is_due:
            with self._reader.lent() as batch:
                if batch is None:
                    raise ProbeError(_NO_FORWARD)
                self._train(batch, y)
                self._reader.buffers.arrange(group.layers for group in self._bank.groups)
        elif not self._reader.take_notice():
            raise ProbeError(_NO_FORWARD)
        self._calls += 1
        self._reader.is_armed = self._is_due

    @property
    def _is_due(self) -> bool:
        """Whether the next call of `step` trains."""
        return self._calls % self._every == 0

    def _train(self, batch: Batch, y: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
        with plain_arithmetic(device_of(self.model).type):
            if not self._bank.steps:
                # Probes that only `evaluate` has seen are zero, and their layers may run in eval mode only.
                self._bank, self._layers = self._new_bank(), []
            labels = self._labels(batch, y, training=True)
            if not labels.examples and self._process_group is None:
                raise ProbeError(
                    "this batch has no examples, so there is nothing to learn from it; leave it out."
                )
            self._bank.step({layer: x for layer, (x, _) in batch.items()}, labels)

    def _labels(
        self, batch: Batch, y: torch.Tensor | Mapping[str, torch.Tensor], *, training: bool
    ) -> Labels:
        """Check what the forward gave against its labels, and give new layers their probes."""
        self._reader.require_all_found()
        absent = [layer for layer in self._bank.specs if layer not in batch]
        if training and absent:
            raise ProbeError(
                f"layer {absent[0]!r} did not run in this forward, though it did before; a probe needs its "
                "layer in every training batch, so leave it out (or, if the model was compiled before the "
                "probes were attached, call torch.compiler.reset())."
            )
        device = next((x.device for x, _ in batch.values()), torch.device("cpu"))
        labels = Labels(y, self._targets, device)
        odd = {len(x) for x, _ in batch.values() if len(x) != labels.examples}
        if len(odd) == 1 and all(len(x) in odd for x, _ in batch.values()):
            raise ProbeError(
                f"{labels.examples} labels were given for a batch of {odd.pop()} examples; pass step() the "
                "labels of the last batch that the model saw."
            )
        self._reader.require_examples(batch, labels.examples, relied_on=self._bank.specs)
        bound = self._reader.bound
        ran, specs = list(batch), self._bank.specs
        if training or not self._bank.steps:
            found = {layer: bound[layer] for layer in ran if layer not in specs}
            self._bank.add([ProbeSpec(n, b.size, b.positions) for n, b in found.items()], device)
        self._layers = _merged([layer for layer in ran if layer in specs], self._layers)
        for layer, (x, valid) in batch.items():
            if layer in specs and x.shape[-1] != specs[layer].size:
                raise ProbeError(_size_changed(layer, specs[layer].size, x.shape[-1]))
            if valid is not None and bound[layer].positions:
                labels.note_valid(valid)
        return labels

    def fit(
        self,
        loader: Iterable[Any],
        valid: Iterable[Any],
        *,
        max_epochs: int = 50,
        patience: int = 3,
        progress: bool = True,
    ) -> ProbeResult:
        """Fit fresh probes to the model held fixed, each stopped early at its best validation loss.

        The model runs in eval mode without gradients; its modes and all random streams are restored.

        Args:
            loader: training batches, any order.
            valid: validation batches; they choose when to stop, and among several learning rates.
            max_epochs: passes over `loader` at most.
            patience: passes without a lower validation loss after which a probe has stopped.
            progress: show a bar on a terminal.

        Returns:
            The readings on `valid`, which for having chosen are a little too good.

        Raises:
            ProbeError: as `evaluate`, and if `valid` gives other examples in a later pass.
        """
        max_epochs = whole_number("max_epochs", max_epochs, least=1)
        patience = whole_number("patience", patience, least=1)
        previous, settled = (self._bank, self._layers), self._reader.settled()
        self._bank, self._layers = self._new_bank(), []
        self._reader.settle(Settled({}, {}, set()))
        try:
            with self._held_fixed(loader, valid):
                return self._result("valid", self._fit(loader, valid, max_epochs, patience, progress))
        except BaseException:
            self._bank, self._layers = previous
            self._reader.settle(settled)
            raise

    def _fit(
        self, loader: Iterable[Any], valid: Iterable[Any], max_epochs: int, patience: int, progress: bool
    ) -> Measurement:
        """Train; what the last pass over `valid` says of the probes as they ended."""
        stopping: EarlyStopping | None = None
        fingerprint: int | None = None
        for epoch in range(max_epochs):
            before = self._bank.steps
            for _, _, batch, y in self._batches(loader, f"fit {epoch + 1}/{max_epochs}", progress):
                if not batch or any(len(x) for x, _ in batch.values()):  # an empty batch says nothing
                    self._train(batch, y)
            if self._bank.steps == before:
                raise ProbeError(
                    f"the training loader gave no batch in pass {epoch + 1}; pass one that can be iterated "
                    "again and again, such as a list or a DataLoader."
                )
            measured = self._measure(valid, "valid", progress, fingerprint)
            fingerprint = measured.fingerprint
            stopping = stopping or EarlyStopping(self._bank, patience)
            if stopping.update(measured.losses()):
                break
        if stopping is not None:
            stopping.restore()
        return self._measure(valid, "valid", progress, fingerprint)

    def _new_bank(self) -> Bank:
        return Bank(self._targets, self._lrs, self._process_group)

    # -- measuring ----------------------------------------------------------------------------------

    def evaluate(self, loader: Iterable[Any], *, split: str = "valid", progress: bool = True) -> ProbeResult:
        """Measure every probe on all of `loader`, the model in eval mode and left as it was.

        Args:
            loader: batches for `forward`.
            split: name of the data in the result.
            progress: show a bar on a terminal.

        Raises:
            ProbeError: for a selection that matched nothing, unusable labels, features that are NaN, or
                no batch at all.
        """
        if not self._bank.steps:
            self._bank, self._layers = self._new_bank(), []  # all zero, of whatever was measured before
        with self._held_fixed(loader):
            measured = self._measure(loader, split, progress)
        if not self._bank.steps:
            self._reader.settle(replace(self._reader.settled(), used=set()))  # training may see other sizes
        return self._result(split, measured)

    def _result(self, split: str, measured: Measurement) -> ProbeResult:
        readings = measured.readings(self._reader.bound, self._layers)
        ran = {reading.layer for reading in readings}
        missing = tuple(layer for layer in self._layers if layer not in ran)
        return ProbeResult(split, readings, measured.references(), missing)

    def _measure(
        self, loader: Iterable[Any], split: str, progress: bool, fingerprint: int | None = None
    ) -> Measurement:
        """One pass over a split, which has to have this fingerprint if one is given."""
        measured = Measurement(self._bank)
        device_type = device_of(self.model).type
        for given, output, batch, y in self._batches(loader, split, progress):
            with plain_arithmetic(device_type):
                labels = self._labels(batch, y, training=False)
                if bool(labels.fault):
                    raise ProbeError(f"labels of split {split!r} are out of range for {self._targets}.")
                measured.add(output, batch, labels)
            measured.note_examples(given, labels.examples)
        if fingerprint is not None and measured.fingerprint != fingerprint:
            raise ProbeError(
                f"the examples of split {split!r} are not those of the first pass, which stopped probes too; "
                "switch off augmentation and whatever else changes them."
            )
        if measured.is_empty:
            raise ProbeError(f"the loader of split {split!r} gave no batch, so there is nothing to measure.")
        if self._process_group is not None:
            measured.reduce(self._process_group)
        measured.require_rows(split)
        return measured

    # -- running the model --------------------------------------------------------------------------

    @contextmanager
    def _held_fixed(self, *loaders: object) -> Iterator[None]:
        with held_fixed(self.model, *loaders), self._reader.reading_everything():
            yield

    def _batches(
        self, loader: Iterable[Any], text: str, progress: bool
    ) -> Iterator[tuple[Any, Any, Batch, Any]]:
        """Run the model on each batch: the batch, its output, the layers' features, and the labels."""
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise ProbeError(f"{loader!r} is no loader; give something that can be iterated for batches.")
        with tqdm(desc=text, unit="example", leave=False, disable=None if progress else True) as bar:
            for batch in loader:
                output, labels, features = self._reader.run(self._forward, batch)
                bar.update(next((len(x) for x, _ in features.values()), 0))
                yield batch, output, features, labels


def _merged(new: list[str], old: list[str]) -> list[str]:
    """Names in the newest execution order; those that did not run stay behind their old neighbour."""
    merged, known = list(new), set(new)
    for i, name in enumerate(old):
        if name not in known:
            merged.insert(merged.index(old[i - 1]) + 1 if i else 0, name)
    return merged


def _size_changed(layer: str, old: int, new: int) -> str:
    return (
        f"layer {layer!r} gave {old} features and now gives {new}; a probe needs one size, so keep the input "
        "size fixed or pool the layer (reduce='avg')."
    )
