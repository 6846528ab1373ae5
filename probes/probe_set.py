"""ProbeSet: linear classifier probes on the layers of a model that is being trained, or held fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from tqdm import tqdm

from .automatic import automatic_layers
from .bank import Bank, ProbeSpec
from .early_stopping import EarlyStopping
from .errors import ProbeError
from .labels import Labels
from .layout import Layout, infer_layout
from .reduction import BoundReduction, Reduction, bind, parse_reduction
from .results import ProbeResult, Reading, Reference
from .selection import HookPoint, Pattern, Selection, glob_matches
from .streams import preserved_random_state
from .tally import Tally
from .taps import Taps
from .targets import Classification, Regression, Target, as_targets

__all__ = ["ProbeSet", "default_forward"]

Reduce: TypeAlias = "Reduction | Sequence[Reduction] | str"
Forward: TypeAlias = Callable[[nn.Module, Any], tuple[Any, Any]]
# By layer: features and, for padded sequences, which positions hold data.
Batch: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor | None]]
_LABEL_KEYS = ("labels", "label", "y", "targets", "target")


class ProbeSet:
    """Linear classifiers `f_k(h) = softmax(W h + b)` on the features `H_k` of chosen layers.

    Alain & Bengio, *Understanding intermediate layers using linear classifier probes* (2016). Probes read
    copies of the features, so nothing of them reaches the model: training with them gives the same bits.

    Args:
        model: any module. DDP and `torch.compile` wrappers are looked through.
        layers: names, globs, `re.compile` patterns, module types, predicates on `HookPoint`, a list of
            these, or `"auto"`: the input and the blocks that a person would draw. See `Selection`.
        num_classes: of the labels, when there is one set of class labels.
        targets: otherwise what to predict: a `Classification`, `MultiLabel` or `Regression`, or several by
            name.
        exclude: patterns like `layers` for what to leave out.
        reduce: how features become few numbers per example: a reduction, its text (`"auto"`, `"avg:2"`,
            `"subset:1000"`, see `parse_reduction`), or these by glob, the first match counting.
        lr: Adam's learning rate, one for probes of every size; or several: each layer then has a probe per
            rate and shows the best.
        forward: `forward(model, batch) -> (output, labels)`, for `evaluate` and `fit`; see
            `default_forward`.
        seed: of the random subsets and projections, with each layer's name.
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
        lr: float | Sequence[float] = 0.03,
        forward: Forward | None = None,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ):
        self.model = _unwrap(model)
        self.skipped: dict[str, str] = {}  # layers of "auto" without a probe, and why
        self._is_auto = isinstance(layers, str) and layers == "auto"
        selection = Selection(automatic_layers(self.model) if self._is_auto else layers, exclude)
        self._reduce, self._seed = reduce, seed
        self._targets = as_targets(num_classes, targets)
        self._lrs = (lr,) if isinstance(lr, (int, float)) else tuple(lr)
        if not self._lrs or not all(0 < rate < math.inf for rate in self._lrs):
            raise ProbeError(f"lr={lr} is no learning rate: give one above 0, or several.")
        for text in reduce.values() if isinstance(reduce, Mapping) else [reduce]:
            if isinstance(text, str):
                parse_reduction(text)  # refuses what has no meaning
        self._forward = forward or default_forward
        self._process_group = process_group
        self._bank = self._new_bank()
        self._layouts: dict[str, Layout] = {}
        self._bound: dict[str, BoundReduction] = {}
        self._layers: list[str] = []
        self._mask: torch.Tensor | None = None
        self._incoming: Batch = {}
        self._features: Batch | None = None  # of the last training forward, until `step`
        self._held = False  # inside `evaluate` or `fit`
        self._taps = Taps(self.model, selection, self)

    # -- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> ProbeSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove every hook; the model is as if there had been no probes. Safe to call twice."""
        self._taps.detach()
        self._features, self._incoming = None, {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the probed layers in execution order; known after the first forward."""
        return tuple(self._layers)

    @property
    def reductions(self) -> dict[str, tuple[str, int]]:
        """What was chosen for each layer: the reduction's text and the features it gives."""
        return {layer: (self._bound[layer].text, self._bound[layer].size) for layer in self._layers}

    def state_dict(self) -> dict[str, Any]:
        """Weights, statistics and optimizer state of the probes; loads with `weights_only=True`."""
        return {"seed": self._seed, "layers": list(self._layers), "bank": self._bank.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another set with the same targets, learning rates and seed was.

        Raises:
            ProbeError: if they differ.
        """
        if state["seed"] != self._seed:
            raise ProbeError(f"the saved probes used seed={state['seed']}, this set seed={self._seed}.")
        self._bank.load_state_dict(state["bank"], _device(self.model))
        self._layers = list(state["layers"])

    # -- what the taps call ---------------------------------------------------------------------------

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Read forwards in training mode with gradients, and our own."""
        self._incoming = {}
        self._mask = _token_mask(kwargs)
        return self._held or (self.model.training and torch.is_grad_enabled())

    def receive(self, point: HookPoint, value: torch.Tensor | PackedSequence) -> None:
        """Reduce a layer's features to a small copy."""
        if point.name in self.skipped:
            return
        tensor = value.data if isinstance(value, PackedSequence) else value
        with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
            try:
                self._incoming[point.name] = self._read(point, value)
            except ProbeError as error:
                if not self._is_auto or point.name in self._bank.specs:
                    raise
                self.skipped[point.name] = str(error)

    def _read(
        self, point: HookPoint, value: torch.Tensor | PackedSequence
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        name = point.name
        if name not in self._layouts:
            self._layouts[name] = infer_layout(value, point.module, name)
        features = self._layouts[name].features(
            value.detach() if isinstance(value, torch.Tensor) else value, self._mask
        )
        if name not in self._bound:
            self._bound[name] = bind(self._reduction_of(name), features, seed=self._seed, name=name)
        return self._bound[name](features)

    def _reduction_of(self, name: str) -> Reduce:
        if not isinstance(self._reduce, Mapping):
            return self._reduce
        return next((r for glob, r in self._reduce.items() if glob_matches(glob, name)), "auto")

    def end(self) -> None:
        """The features of a whole forward are there."""
        self._features, self._incoming = self._incoming, {}

    # -- training -----------------------------------------------------------------------------------

    def step(self, y: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
        """Advance every probe on the features of the last training forward.

        Args:
            y: labels (B,) of that batch, or per position (B, T) or (B, H, W) with `reduce="positions"`;
                by target if there are several.

        Raises:
            ProbeError: without such a forward, for a selection that matched nothing, and for labels or
                features that cannot be used. The model, its gradients and its probes stay as they were.
        """
        if self._features is None and self._taps.error is None:
            raise ProbeError(
                "step() needs a training forward before it: call the model itself, in train mode and with "
                "gradients enabled, once for each step (forwards under eval() or no_grad() never train a "
                "probe; use fit() for a model that is held fixed)."
            )
        batch, self._features = self._features or {}, None
        self._train(batch, y)

    def _train(self, batch: Batch, y: torch.Tensor | Mapping[str, torch.Tensor]) -> None:
        if not self._bank.steps:
            # Probes that only `evaluate` has seen are all zero, and their layers may run in eval mode only.
            self._bank, self._layers = self._new_bank(), []
        labels = self._labels(batch, y, training=True)
        absent = [layer for layer in self._bank.specs if layer not in batch]
        if absent:
            raise ProbeError(
                f"layer {absent[0]!r} did not run in this forward, though it did before; a probe needs its "
                "layer in every training batch, so leave it out."
            )
        with torch.autocast(labels.fault.device.type, enabled=False):
            self._bank.step({layer: x for layer, (x, _) in batch.items()}, labels)

    def _labels(
        self, batch: Batch, y: torch.Tensor | Mapping[str, torch.Tensor], *, training: bool
    ) -> Labels:
        """Check what the forward gave against its labels, and give new layers their probes."""
        if self._taps.error is not None:
            error, self._taps.error = self._taps.error, None
            raise error
        self._taps.require_matches(all_of_them=not self._is_auto)
        device = next((x.device for x, _ in batch.values()), torch.device("cpu"))
        labels = Labels(y, self._targets, device)
        self._drop_or_refuse(batch, labels.examples)
        ran, specs = [name for name in self._taps.order if name in batch], self._bank.specs
        if training or not self._bank.steps:
            found = {layer: self._bound[layer] for layer in ran if layer not in specs}
            self._bank.add([ProbeSpec(n, b.size, b.positions) for n, b in found.items()], device)
        self._layers = _merged([layer for layer in ran if layer in self._bank.specs], self._layers)
        for layer, (x, valid) in batch.items():
            if layer in specs and x.shape[-1] != specs[layer].size:
                raise ProbeError(_size_changed(layer, specs[layer].size, x.shape[-1]))
            if valid is not None and self._bound[layer].positions:
                labels.note_valid(valid)
        return labels

    def _drop_or_refuse(self, batch: Batch, examples: int) -> None:
        """Every layer must have one entry per label; where `"auto"` chose one that has not, it goes."""
        odd = {layer: len(x) for layer, (x, _) in batch.items() if len(x) != examples}
        if odd and len(odd) == len(batch) and len(set(odd.values())) == 1:
            raise ProbeError(
                f"{examples} labels were given for a batch of {next(iter(odd.values()))} examples; pass "
                "step() the labels of the last batch that the model saw."
            )
        for layer, rows in odd.items():
            problem = (
                f"layer {layer!r} gives {rows} rows for a batch of {examples} examples, so its rows are "
                "not examples (windows or tokens, perhaps); probe the block around it."
            )
            if not self._is_auto or layer in self._bank.specs:
                raise ProbeError(problem)
            self.skipped[layer] = problem
            del batch[layer]
        if not batch:
            reasons = "".join(f" {reason}" for reason in list(self.skipped.values())[:1])
            raise ProbeError(f"no layer of this model could be probed; name some with layers=[...].{reasons}")

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
        """
        previous, self._bank = self._bank, self._new_bank()
        try:
            with self._model_held_fixed(loader, valid):
                self._fit(loader, valid, max_epochs, patience, progress)
            return self.evaluate(valid, progress=progress)
        except BaseException:
            self._bank = previous
            raise

    def _fit(
        self, loader: Iterable[Any], valid: Iterable[Any], max_epochs: int, patience: int, progress: bool
    ) -> None:
        stopping: EarlyStopping | None = None
        for epoch in range(max_epochs):
            before = self._bank.steps
            for _, batch, y in self._batches(loader, f"fit {epoch + 1}/{max_epochs}", progress):
                self._train(batch, y)
            if self._bank.steps == before:
                raise ProbeError(
                    f"the training loader gave no batch in pass {epoch + 1}; pass one that can be iterated "
                    "again and again, such as a list or a DataLoader."
                )
            tallies = self._measure(valid, "valid", progress)[0]
            stopping = stopping or EarlyStopping(self._bank, patience)
            if stopping.update({key: tally.means()[0][:, 0] for key, tally in tallies.items()}):
                break
        if stopping is not None:
            stopping.restore()

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
        with self._model_held_fixed(loader):
            tallies, summaries, own = self._measure(loader, split, progress)
        references = tuple(self._reference(name, summaries[name], own) for name in self._targets)
        readings = tuple(
            self._reading(layer, name, tallies[layer, name], summaries[name])
            for layer in self._layers
            for name in self._targets
            if (layer, name) in tallies
        )
        measured = {reading.layer for reading in readings}
        return ProbeResult(split, readings, references, tuple(n for n in self._layers if n not in measured))

    def _measure(
        self, loader: Iterable[Any], split: str, progress: bool
    ) -> tuple[dict[tuple[str, str], Tally], dict[str, torch.Tensor], Tally]:
        """Sums over the data: per layer and target, of the labels, and of the model's own error."""
        tallies: dict[tuple[str, str], Tally] = {}
        summaries: dict[str, torch.Tensor] = {}
        own = Tally()
        primary, target = next(iter(self._targets.items()))
        for output, batch, y in self._batches(loader, split, progress):
            labels = self._labels(batch, y, training=False)
            if bool(labels.fault):
                raise ProbeError(f"labels of split {split!r} are out of range for {self._targets}.")
            with torch.autocast(labels.fault.device.type, enabled=False):
                self._bank.measure({layer: x for layer, (x, _) in batch.items()}, labels, tallies)
            for name, t in self._targets.items():
                values = labels.values[name]
                summary = t.summary(values[t.counted(values)])
                summaries[name] = summaries[name] + summary if name in summaries else summary
            logits, answer = _first_tensor(output), labels.values[primary]
            if _answers(logits, answer, target):
                own.add((logits.argmax(1) != answer).double()[:, None], target.counted(answer)[:, None])
        if not tallies:
            raise ProbeError(f"the loader of split {split!r} gave no batch, so there is nothing to measure.")
        if self._process_group is not None:
            for tally in [*tallies.values(), own]:
                tally.reduce(self._process_group)
            for summary in summaries.values():
                dist.all_reduce(summary, group=self._process_group)
        return tallies, summaries, own

    def _reading(self, layer: str, name: str, tally: Tally, summary: torch.Tensor) -> Reading:
        target, r = self._targets[name], self._bank.best_lr(layer, name)
        means, errors = tally.means()
        found = dict(
            zip(target.metrics, zip(means[r].tolist(), errors[r].tolist(), strict=True), strict=True)
        )
        loss = found["loss"]
        if isinstance(target, Regression):
            variance = target.variance(summary)
            found["error"] = (loss[0] / variance, loss[1] / variance) if variance > 0 else (float("nan"),) * 2
        top5 = found.get("top5_error", (None, None))
        bound = self._bound[layer]
        return Reading(
            layer=layer,
            target=name,
            reduction=bound.text,
            features=bound.size,
            lr=self._lrs[r],
            steps=self._bank.steps_of(layer),
            n=int(tally.rows),
            loss=loss[0],
            loss_se=loss[1],
            error=found["error"][0],
            error_se=found["error"][1],
            top5_error=top5[0],
            top5_error_se=top5[1],
        )

    def _reference(self, name: str, summary: torch.Tensor, own: Tally) -> Reference:
        target = self._targets[name]
        mine = name == next(iter(self._targets)) and float(own.rows) > 0
        error, se = (value.item() for value in own.means()) if mine else (None, None)
        rows = int(summary.sum() if isinstance(target, Classification) else summary[0, 0])
        return Reference(name, rows, target.majority_error(summary), error, se)

    # -- running the model --------------------------------------------------------------------------

    @contextmanager
    def _model_held_fixed(self, *loaders: object) -> Iterator[None]:
        """Eval mode, no gradients, our own forwards read; what was before is restored."""
        modes = [(module, module.training) for module in self.model.modules()]
        waiting = self._features  # of a training forward whose step is still to come
        with preserved_random_state(*loaders), torch.no_grad():
            self._held = True
            self.model.eval()
            try:
                yield
            finally:
                self._held, self._features = False, waiting
                for module, mode in modes:
                    module.training = mode

    def _batches(self, loader: Iterable[Any], text: str, progress: bool) -> Iterator[tuple[Any, Batch, Any]]:
        """Run the model on each batch: its output, the layers' features, and the labels."""
        device = _device(self.model)
        with tqdm(desc=text, unit="example", leave=False, disable=None if progress else True) as bar:
            for batch in loader:
                self._features = None
                output, y = self._forward(self.model, _to(batch, device))
                if self._features is None:
                    raise self._taps.error or ProbeError(
                        "the forward function did not call the model, so no layer could be read."
                    )
                features, self._features = self._features, None
                bar.update(len(next(iter(y.values())) if isinstance(y, Mapping) else y))
                yield output, features, y


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Run a batch `(x, y, ...)`, or a dict with labels under `labels`, `label`, `y`, `targets` or `target`.

    Returns:
        The model's output and the labels.

    Raises:
        ProbeError: for a batch of another form, which needs a `forward` function.
    """
    if isinstance(batch, Mapping):
        key = next((k for k in _LABEL_KEYS if k in batch), None)
        if key is not None:
            return model(**{k: v for k, v in batch.items() if k != key}), batch[key]
    elif isinstance(batch, Sequence) and len(batch) >= 2:
        return model(batch[0]), batch[1]
    raise ProbeError(
        "batches are neither (x, y) nor dicts with labels; pass "
        "forward=lambda model, batch: (output, labels)."
    )


def _unwrap(model: nn.Module) -> nn.Module:
    if isinstance(model, nn.DataParallel):
        raise ProbeError("nn.DataParallel runs copies of the model that hooks cannot follow; use DDP.")
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return _unwrap(inner) if isinstance(inner, nn.Module) else model


def _device(model: nn.Module) -> torch.device:
    tensors = (t for group in (model.parameters(), model.buffers()) for t in group)
    return next((t.device for t in tensors), torch.device("cpu"))


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, PackedSequence):
        moved: PackedSequence = batch.to(device)  # type: ignore[arg-type]  # torch's stub is wrong
        return moved
    if isinstance(batch, Mapping):
        return {key: _to(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [_to(value, device) for value in batch]
    return batch


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    return logits if isinstance(logits, torch.Tensor) else None


def _answers(logits: torch.Tensor | None, y: torch.Tensor, target: Target) -> TypeGuard[torch.Tensor]:
    """Whether a model's output has one number per class for each of these labels."""
    if not isinstance(target, Classification) or logits is None or y.ndim != 1:
        return False
    return logits.shape == (len(y), target.num_classes)


def _token_mask(kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Which tokens are data, from the arguments that models take for it: bool (B, T)."""
    mask, padding = kwargs.get("attention_mask"), kwargs.get("src_key_padding_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask.bool()
    return ~padding if isinstance(padding, torch.Tensor) and padding.dtype == torch.bool else None


def _merged(new: list[str], old: list[str]) -> list[str]:
    """Names in the newest execution order; those that did not run stay behind their old neighbour."""
    merged = list(new)
    for i, name in enumerate(old):
        if name not in merged:
            merged.insert(merged.index(old[i - 1]) + 1 if i else 0, name)
    return merged


def _size_changed(layer: str, old: int, new: int) -> str:
    return (
        f"layer {layer!r} gave {old} features and now gives {new}; a probe needs one size, so keep the input "
        "size fixed or pool the layer (reduce='avg')."
    )
