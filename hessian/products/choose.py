"""The ways to compute one kind of product, and which of them is taken."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from thermoscope.errors import HessianError, first_line
from thermoscope.nests import leaves

from ..empirical_risk.data_pass import Passes
from ..empirical_risk.memory import counted_saves, ran_out
from ..empirical_risk.parameters import Tensors, flatten, split
from .linearized import Linearized, Linearizer
from .matrices import MODES, Curvature, Mode, Multiply

__all__ = ["Choice", "Methods", "Weights"]

_TRIAL = 256  # examples at most that a way is tried on
_AGREE = 10.0  # products that should be equal are so to this many times the root of a rounding

Weights = tuple[Tensors, Tensors]
"""The chosen parameters, and all else that the model's state has."""


@dataclass(frozen=True)
class Choice:
    """Why products are computed in the way they are.

    By operations a product costs the same linearised or on a retained graph, and half as much again where
    the graph is made anew; linearised, autograd's own work is saved too. So the way is the first of these
    that works and fits, by evidence that does not depend on the clock: the same model, data and limit always
    give the same way, and the same digits.

    Attributes:
        mode: "linearized" if it works, agrees with reverse over reverse and fits the memory; else "retained"
            if that does; else "reverse_reverse", and "forward_reverse" where torch has no second reverse.
        bytes: that a mode would keep for all the data.
        refused: why one that comes before is not taken.
        difference: of the linearised product from that by reverse over reverse, on the first examples, as a
            share of its length; None if they were not compared.
    """

    mode: Mode
    bytes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    difference: float | None = None


class Methods:
    """How to multiply by one kind of curvature matrix of an objective.

    The choice is made once and serves all snapshots of the model.
    """

    def __init__(self, passes: Passes, curvature: Curvature):
        self._passes, self.curvature = passes, curvature
        self._linearizer = Linearizer(curvature.product)
        self._choices: dict[Mode | None, Choice] = {}

    def prepared(self, mode: Mode, weights: Weights, batch: Any) -> Multiply:
        """The linear map of one batch, with what the mode keeps for it."""
        parameters, fixed = weights
        if mode == "linearized":
            return self._linearizer(parameters, fixed, batch)
        if mode == "forward_reverse":
            return lambda vector: self.curvature.product(parameters, vector, fixed, batch)
        return self.curvature.retained(parameters, fixed, batch)

    def choose(self, mode: Mode | None, weights: Weights) -> Choice:
        """This mode, or by itself.

        Raises:
            HessianError: for one that does not work here, or if none does.
        """
        self._linearizer = Linearizer(self.curvature.product)  # the model's code may have changed
        if mode is not None and mode not in MODES:
            raise HessianError(f"no mode {mode!r} here; there are {', '.join(MODES)}.")
        if mode not in self._choices:
            with self._passes.evaluating():
                trial = _Trial(self, self._passes, weights)
                self._choices[mode] = trial.only(mode) if mode else trial.best()
        return self._choices[mode]


class _Trial:
    """One product on the first examples, in one way and another."""

    def __init__(self, methods: Methods, passes: Passes, weights: Weights):
        self._methods, self._passes, self._weights = methods, passes, weights
        self._batch = passes.first_piece(_TRIAL)
        self._times = -(-passes.own_examples // passes.size(self._batch))  # such pieces in all the data
        objective = passes.objective
        noise = torch.randn(
            2, objective.size, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
        )
        self._vectors = [
            {name: part.to(weights[0][name].dtype) for name, part in split(row, objective.layout).items()}
            for row in noise.to(objective.device)
        ]
        self._tolerance = _AGREE * objective.rounding**0.5
        self._bytes: dict[str, int] = {}
        self._refused: dict[str, str] = {}

    def only(self, mode: Mode) -> Choice:
        """This mode, if it works."""
        if self._product(mode) is None:
            raise HessianError(
                f"mode {mode!r} does not work for this loss ({self._refused[mode]}); leave the mode open, or "
                "try another."
            )
        return Choice(mode, self._bytes)

    def best(self) -> Choice:
        """The first that works and fits."""
        reference, product = self._product("retained"), self._product("linearized")
        difference = None
        if reference is not None and product is not None:
            difference = float((product - reference).norm() / reference.norm().clamp(min=1e-300))
            if not difference <= self._tolerance:
                self._refused["linearized"] = f"differs from reverse over reverse by {difference:.1e}"
        elif reference is not None:
            self._check_symmetry(reference)
        limit = self._passes.memory_limit
        for keeping, kept in self._bytes.items():
            if kept > limit:
                self._refused.setdefault(keeping, f"would keep {kept:,} bytes of {limit:,}")
        mode: Mode = "reverse_reverse" if reference is not None else "forward_reverse"
        if "linearized" not in self._refused:
            mode = "linearized"
        elif "retained" not in self._refused:
            mode = "retained"
        if mode == "forward_reverse" and self._product(mode) is None:
            why = "; ".join(": ".join(item) for item in self._refused.items())
            raise HessianError(f"the loss cannot be differentiated twice ({why}).")
        return Choice(mode, self._bytes, self._refused, difference)

    def _check_symmetry(self, products: torch.Tensor) -> None:
        """Where there is no second way to compare with: <u, A v> = <v, A u>, or a derivative is wrong.

        A difference of two matrices may be nothing but rounding, which has no symmetry.
        """
        v, u = (flatten(vector, torch.float64) for vector in self._vectors)
        asymmetry = float((u @ products[0] - v @ products[1]).abs() / products.norm().clamp(min=1e-300))
        if asymmetry > self._tolerance and self._methods.curvature.name != "residual":
            raise HessianError(
                f"products by reverse over reverse are not symmetric, by {asymmetry:.1e} of their length: "
                "torch's second derivative of an operation in the model or the loss is wrong, or they are "
                "nothing but rounding, which dtype=torch.float64 would tell."
            )

    def _product(self, mode: Mode) -> torch.Tensor | None:
        """With two random vectors, (2, n) in float64; None, with the reason noted, where it does not work."""
        try:
            with counted_saves() if mode == "retained" else nullcontext(dict[int, int]()) as saved:
                multiply = self._methods.prepared(mode, self._weights, self._batch)
            products = [flatten(multiply(vector), torch.float64) for vector in self._vectors]
        except HessianError:
            raise
        except Exception as error:  # torch raises many kinds for what it cannot differentiate
            if ran_out(error) and mode == "forward_reverse":
                raise
            self._refused[mode] = first_line(error)
            return None
        if isinstance(multiply, Linearized):
            self._bytes[mode] = multiply.bytes * self._times
        elif mode == "retained":
            parameters, fixed = self._weights
            held = (*parameters.values(), *fixed.values(), *leaves(self._batch, torch.Tensor))
            there = {t.untyped_storage().data_ptr() for t in held}
            kept = sum(size for pointer, size in saved.items() if pointer not in there)
            self._bytes[mode] = kept * self._times
        return torch.stack(products)
