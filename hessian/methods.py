"""The ways to compute one kind of product, and which of them is the fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import HessianError
from .hvp import MODES, Mode, counted_saves, retained_graph
from .linearize import Linearized, Linearizer, Product, Tensors
from .memory import ran_out
from .parameters import split
from .passes import Passes

__all__ = ["Choice", "Methods", "Multiply", "Weights"]

_LONG = 1.0  # seconds after which one measurement is enough
_REPEATS = 3

Multiply = Callable[[Tensors], Tensors]
Weights = tuple[Tensors, Tensors]
"""The chosen parameters, and all else that the model's state has."""


@dataclass(frozen=True)
class Choice:
    """Why products are computed in the way they are.

    Attributes:
        mode: the fastest of those that fit the memory.
        seconds: per product on the first batch, by mode.
        bytes: that the mode would keep for all the data, by mode.
        refused: why a mode is not taken.
    """

    mode: Mode
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class Methods:
    """How to multiply by one kind of curvature matrix of an objective.

    The choice is made once and serves all snapshots of the model.

    Attributes:
        kind: "hessian", "gauss_newton" or "residual".
        modes: those that exist for it.
    """

    def __init__(self, passes: Passes, kind: str, product: Product):
        self._passes, self.kind, self._product = passes, kind, product
        self.modes: tuple[Mode, ...] = MODES if kind == "hessian" else ("forward_reverse", "linearized")
        self._linearizer = Linearizer(product)
        self._choice: Choice | None = None

    def prepared(self, mode: Mode, weights: Weights, batch: Any) -> Multiply:
        """The linear map of one batch, with what the mode keeps for it."""
        parameters, fixed = weights
        if mode == "linearized":
            return self._linearizer(parameters, fixed, batch)
        if mode == "forward_reverse":
            return lambda vector: self._product(parameters, vector, fixed, batch)
        return retained_graph(self._passes.objective.loss, parameters, fixed, batch)

    def choose(self, mode: Mode | None, weights: Weights) -> Choice:
        """This mode, or the fastest.

        Raises:
            HessianError: for one that does not work here, or if none does.
        """
        self._linearizer = Linearizer(self._product)  # the model's code may have changed since the last
        if mode is None:
            if self._choice is None:
                self._choice = self._measured(weights)
            return self._choice
        if mode not in self.modes:
            raise HessianError(f"no mode {mode!r} here; there are {', '.join(self.modes)}.")
        batch, _ = self._passes.first_piece()
        try:
            with self._passes.evaluating():
                self._time(mode, weights, batch, repeats=1)
        except (RuntimeError, NotImplementedError) as error:
            if ran_out(error):
                raise
            raise HessianError(
                f"mode {mode!r} does not work for this loss ({_first_line(error)}); leave the mode open, or "
                "try another."
            ) from error
        return Choice(mode)

    def _measured(self, weights: Weights) -> Choice:
        batch, n = self._passes.first_piece()
        limit = self._passes.memory_limit
        seconds: dict[str, float] = {}
        sizes: dict[str, int] = {}
        refused: dict[str, str] = {}
        with self._passes.evaluating():
            for mode in self.modes:
                try:
                    seconds[mode], kept = self._time(mode, weights, batch, 1 + _REPEATS)
                except HessianError:
                    raise
                except Exception as error:  # torch raises many kinds for what it cannot differentiate
                    refused[mode] = _first_line(error)
                    continue
                sizes[mode] = kept * -(-self._passes.own_examples // n)
                if sizes[mode] > limit:
                    refused[mode] = f"would keep {sizes[mode]:,} bytes of {limit:,}"
        fitting = [mode for mode in self.modes if mode not in refused]
        if not fitting:
            why = "; ".join(f"{mode}: {reason}" for mode, reason in refused.items())
            raise HessianError(f"the loss cannot be differentiated twice ({why}).")
        return Choice(min(fitting, key=seconds.__getitem__), seconds, sizes, refused)

    def _time(self, mode: Mode, weights: Weights, batch: Any, repeats: int) -> tuple[float, int]:
        """Seconds of a product on one batch, and bytes that would be kept for it."""
        vector, kept, times = self._random_vector(weights[0]), 0, []
        if mode == "retained":
            with counted_saves() as saved:
                multiply = self.prepared(mode, weights, batch)
            kept = sum(saved.values())
        else:
            multiply = self.prepared(mode, weights, batch)
        if isinstance(multiply, Linearized):
            kept = multiply.bytes
        for _ in range(repeats):
            start = time.perf_counter()
            if mode == "reverse_reverse":
                multiply = self.prepared(mode, weights, batch)
            multiply(vector)
            if self._passes.objective.device.type == "cuda":
                torch.cuda.synchronize(self._passes.objective.device)
            times.append(time.perf_counter() - start)
            if times[-1] > _LONG:
                break
        return min(times), kept  # what else the machine does can only add to it

    def _random_vector(self, parameters: Tensors) -> Tensors:
        objective = self._passes.objective
        noise = torch.randn(objective.size, generator=torch.Generator().manual_seed(0)).to(objective.device)
        parts = split(noise, objective.layout)
        return {name: part.to(parameters[name].dtype) for name, part in parts.items()}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
