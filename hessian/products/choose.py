"""The modes that there are, and which of them computes the products of a curvature matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from thermoscope.errors import HessianError, first_line

from ..empirical_risk.data_pass import Passes
from ..empirical_risk.memory import ran_out
from ..empirical_risk.parameters import Tensors, flatten, split
from .forward_reverse import ForwardReverse
from .linearized import Linearized
from .matrix import CurvatureMatrix, LocalLoss
from .mode import LinearMaps, ProductMode
from .retained import Retained
from .reverse_reverse import ReverseReverse

__all__ = ["MODES", "ModeChoice", "ProductModes", "product_mode"]

_TRIAL = 256  # examples at most that a mode is tried on
_AGREE = 10.0  # products that should be equal are so to this many times the root of a rounding

MODES: tuple[ProductMode, ...] = (Linearized(), Retained(), ReverseReverse(), ForwardReverse())
"""The modes to choose from, the first preferred."""


def product_mode(mode: ProductMode | str) -> ProductMode:
    """The mode of this name; a mode is itself.

    Raises:
        HessianError: if there is none.
    """
    named = {known.name: known for known in MODES}
    found = mode if isinstance(mode, ProductMode) else named.get(mode)
    if found is None:
        raise HessianError(f"no mode {mode!r} here; there are {', '.join(named)}.")
    return found


@dataclass(frozen=True)
class ModeChoice:
    """Why products are computed in the way they are.

    By operations a product costs the same linearised or on a retained graph, and half as much again where
    the graph is made anew; linearised, autograd's own work is saved too. So the mode is the first of `MODES`
    that works and fits, by evidence that does not depend on the clock: the same model, data and limit always
    give the same mode, and the same digits.

    Attributes:
        mode: `Linearized()` if it works, agrees with reverse over reverse and fits the memory; else
            `Retained()` if that does; else `ReverseReverse()`, and `ForwardReverse()` where torch has no
            second reverse.
        bytes: what a mode would keep for all the data, by its name.
        refused: why a preferred mode is not taken, by its name.
        difference: of the linearised product from that by reverse over reverse, on the first examples, as a
            share of its length; None if they were not compared.
    """

    mode: ProductMode
    bytes: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    difference: float | None = None


class ProductModes:
    """The modes as they apply to one curvature matrix of one loss.

    The choice is made once and serves all snapshots of the model.
    """

    def __init__(self, passes: Passes, matrix: CurvatureMatrix):
        self._passes, self.matrix = passes, matrix
        self._choices: dict[ProductMode | None, ModeChoice] = {}

    def choose(
        self, mode: ProductMode | None, weights: tuple[Tensors, Tensors]
    ) -> tuple[ModeChoice, LinearMaps]:
        """This mode, or by itself; and what it has prepared for one operator.

        Args:
            mode: None for the first that works and fits.
            weights: the chosen parameters, and all else that the model's state has.

        Raises:
            HessianError: for a mode that does not work here, or if none does.
        """
        known = self._choices.get(mode)
        if known is not None:
            return known, known.mode.prepare(self.matrix)  # anew: the model's code may have changed
        with self._passes.evaluating():
            trial = _Trial(self.matrix, self._passes, weights)
            choice = self._choices[mode] = trial.best() if mode is None else trial.only(mode)
        return choice, trial.prepared[choice.mode]


class _Trial:
    """One product on the first examples, in one mode and another."""

    def __init__(self, matrix: CurvatureMatrix, passes: Passes, weights: tuple[Tensors, Tensors]):
        batch: Any = passes.first_piece(_TRIAL)
        objective = passes.objective
        self.prepared: dict[ProductMode, LinearMaps] = {}
        self._matrix, self._limit = matrix, passes.memory_limit
        self._loss = LocalLoss(objective, *weights, batch)
        self._times = -(-passes.own_examples // passes.size(batch))  # such pieces in all the data
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

    def only(self, mode: ProductMode) -> ModeChoice:
        """This mode, if it works."""
        if self._products(mode) is None:
            raise HessianError(
                f"mode {mode.name!r} does not work for this loss ({self._refused[mode.name]}); leave the "
                "mode open, or try another."
            )
        return ModeChoice(mode, self._bytes)

    def best(self) -> ModeChoice:
        """The first that works and fits."""
        products = {mode: self._products(mode) for mode in MODES if mode.keeps}
        difference = None
        for mode, found in products.items():
            reference = products[mode.checked_by] if mode.checked_by else None
            if mode.checked_by and reference is not None:
                if found is None:
                    self._check_symmetry(mode.checked_by, reference)
                    continue
                difference = float((found - reference).norm() / reference.norm().clamp(min=1e-300))
                if not difference <= self._tolerance:
                    self._refused[mode.name] = f"differs from {mode.checked_by.way} by {difference:.1e}"
        for name, kept in self._bytes.items():
            if kept > self._limit:
                self._refused.setdefault(name, f"would keep {kept:,} bytes of {self._limit:,}")
        for mode in MODES:
            if mode.name not in self._refused and (mode in products or self._products(mode) is not None):
                return ModeChoice(mode, self._bytes, self._refused, difference)
        why = "; ".join(": ".join(item) for item in self._refused.items())
        raise HessianError(f"the loss cannot be differentiated twice ({why}).")

    def _check_symmetry(self, mode: ProductMode, products: torch.Tensor) -> None:
        """Where there is no second way to compare with: <u, A v> = <v, A u>, or a derivative is wrong."""
        v, u = (flatten(vector, torch.float64) for vector in self._vectors)
        asymmetry = float((u @ products[0] - v @ products[1]).abs() / products.norm().clamp(min=1e-300))
        if asymmetry > self._tolerance and not self._matrix.may_vanish:
            raise HessianError(
                f"products by {mode.way} are not symmetric, by {asymmetry:.1e} of their length: "
                "torch's second derivative of an operation in the model or the loss is wrong, or they are "
                "nothing but rounding, which dtype=torch.float64 would tell."
            )

    def _products(self, mode: ProductMode) -> torch.Tensor | None:
        """With two random vectors, (2, n) in float64; None, with the reason noted, where it does not work."""
        try:
            prepared = self.prepared[mode] = mode.prepare(self._matrix)
            multiply, kept = mode.measured(prepared, self._loss)
            products = [flatten(multiply(vector), torch.float64) for vector in self._vectors]
        except HessianError:
            raise
        except Exception as error:  # torch raises many kinds for what it cannot differentiate
            if ran_out(error) and mode == MODES[-1]:  # nothing is left to try
                raise
            self._refused[mode.name] = first_line(error)
            return None
        if mode.keeps:
            self._bytes[mode.name] = kept * self._times
        return torch.stack(products)
