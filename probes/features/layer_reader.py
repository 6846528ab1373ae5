"""The reader of layers: a model's hooks and what they read, in the hands of one owner."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn

from thermoscope.errors import ProbeError

from ..user_model import Forward, device_of, outcome, to_device
from .auto import automatic_layers
from .feature_reader import Batch, FeatureReader
from .layout import LayoutText
from .patterns import Pattern, Selection, as_list
from .reduction import Reduce
from .taps import ForwardStopped, Taps

__all__ = ["LayerReader"]


class LayerReader(FeatureReader):
    """Chosen layers of a model: the hooks on them, until `detach`, and their features, forward by forward.

    What went wrong in a forward is raised when its features are asked for.

    Args:
        model: whose layers they are.
        layers, exclude: what is asked for; see `Selection`. `"auto"` leaves out what cannot be read.
        reduce, seed, layout: as for `FeatureReader`.
        also: further layers that are read, with the reductions of those that nobody asks for.

    Raises:
        ProbeError: for a selection that cannot match, and a reduction or layout without meaning.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Pattern | Iterable[Pattern],
        exclude: Pattern | Iterable[Pattern],
        reduce: Reduce | Mapping[str, Reduce],
        seed: int,
        layout: LayoutText | None = None,
        also: Mapping[str, Reduce] = MappingProxyType({}),
    ):
        patterns = as_list(layers)
        self._is_auto = patterns == ["auto"]
        self._selection = Selection(automatic_layers(model) if self._is_auto else patterns, exclude, also)
        super().__init__(
            model,
            reduce,
            seed,
            layout,
            is_lenient=self._is_auto,
            stored=lambda name: None if self.is_asked(name) else also.get(name),
        )
        skipped = self.skipped if self._is_auto else None
        self._taps = Taps(model, self._selection, self, trace=self.trace, skipped=skipped)

    def detach(self) -> None:
        """Remove every hook and drop what was read. Safe to call twice."""
        self._taps.detach()
        self.forget()

    def is_asked(self, name: str) -> bool:
        """Whether a layer that has run is one of those that are asked for."""
        return name in self._selection.asked

    def narrow(self, layers: Sequence[str]) -> None:
        """Read only these of the layers that have run; a forward ends with the last, if it can."""
        self._taps.narrow(layers)

    @contextmanager
    def lent(self) -> Iterator[Batch | None]:
        """As of a `FeatureReader`.

        Raises:
            ProbeError: also for what went wrong in the last training forward.
        """
        with super().lent() as batch:
            self._raise_what_went_wrong()
            yield batch

    @contextmanager
    def reading_everything(self) -> Iterator[None]:
        """As of a `FeatureReader`; what went wrong in a forward before waits for its labels, too."""
        waiting, self._taps.error = self._taps.error, None
        try:
            with super().reading_everything():
                yield
        finally:
            self._taps.error = waiting

    def run(self, forward: Forward, batch: Any) -> tuple[Any, Any, Batch]:
        """Run the model on a batch: its output and the labels, by `forward`, and the layers' features.

        Raises:
            ProbeError: for what went wrong, and a function that is no such forward.
        """
        self.features = None
        output, labels = self._outcome(forward, to_device(batch, device_of(self._model)))
        self._raise_what_went_wrong()
        features = self.take()
        if features is None:
            raise ProbeError("the forward function did not call the model, so no layer could be read.")
        return output, labels, features

    def _outcome(self, forward: Forward, batch: Any) -> tuple[Any, Any]:
        if self._taps.stops:
            try:
                return outcome(forward, _Stoppable(self._model), batch)  # type: ignore[arg-type]
            except Exception:
                # This forward function does more with the model's output than to return it, so it needs one;
                # if it failed for another reason it fails again.
                self._taps.run_whole()
        return outcome(forward, self._model, batch)

    def _raise_what_went_wrong(self) -> None:
        error, self._taps.error = self._taps.error, None
        if error is not None:
            raise error

    def require_all_found(self) -> None:
        """Refuse patterns, and names of reductions and layouts, that no layer satisfies.

        Raises:
            ProbeError: naming the first of them.
        """
        self._taps.require_matches(all_of_them=not self._is_auto)
        self.require_layers(self._taps.known_names())

    def require_examples(self, batch: Batch, examples: int, relied_on: Collection[str] = ()) -> None:
        """Every layer must have one entry per example; where `"auto"` chose one that has not, it goes.

        Raises:
            ProbeError: for a layer that was named, or is relied on, and if no layer is left.
        """
        for layer, rows in [(layer, len(x)) for layer, (x, _) in batch.items()]:
            if rows != examples:
                self.leave_out(
                    batch,
                    layer,
                    f"layer {layer!r} gives {rows} rows for a batch of {examples} examples, so its rows are "
                    "not examples (windows or tokens, perhaps); take the block around it.",
                    relied_on,
                )
        if not batch:
            reasons = "".join(f" {reason}" for reason in list(self.skipped.values())[:1])
            raise ProbeError(f"no layer of this model can be read; name some with layers=[...].{reasons}")

    def leave_out(self, batch: Batch, layer: str, problem: str, relied_on: Collection[str] = ()) -> None:
        """Do without a layer that `"auto"` chose, for this reason.

        Raises:
            ProbeError: with that reason, if it was named or is relied on.
        """
        if not self._is_auto or layer in relied_on:
            raise ProbeError(problem)
        self.skipped[layer] = problem
        del batch[layer]


class _Stoppable:
    """The model, whose call gives nothing when the forward was stopped."""

    def __init__(self, model: nn.Module):
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._model(*args, **kwargs)
        except ForwardStopped:
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
