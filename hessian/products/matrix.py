"""The contract of curvature matrices, and the loss of one batch that they are made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..empirical_risk.batch_loss import Objective
from ..empirical_risk.parameters import Tensors

__all__ = ["CurvatureMatrix", "LocalLoss", "Multiply"]

Multiply = Callable[[Tensors], Tensors]
"""Maps a vector, in the parameters' shapes, to its product with a matrix."""


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """The loss of one batch around given weights, as functions of the parameters.

    Attributes:
        objective: the model and the loss function.
        parameters: those to differentiate by, by name: the point that the matrix belongs to.
        fixed: everything else in the model's state, by name.
        batch: examples in the form in which `Loss` was given them, a whole batch or a part of one.
    """

    objective: Objective
    parameters: Tensors
    fixed: Tensors
    batch: Any

    def at(self, parameters: Tensors) -> torch.Tensor:
        """The mean loss of the batch at these parameters, a scalar."""
        return self.objective.loss(parameters, self.fixed, self.batch)

    def outputs(self, parameters: Tensors) -> Any:
        """The model's outputs at these parameters, as `loss_fn` gets them.

        Raises:
            HessianError: if the loss is not a function of them.
        """
        return self.objective.outputs(parameters, self.fixed, self.batch)

    def of_outputs(self, outputs: Any) -> torch.Tensor:
        """The mean loss of the batch if the model gave these outputs, a scalar."""
        return self.objective.loss_of_outputs(outputs, self.batch)


class CurvatureMatrix(ABC):
    """A symmetric (n, n) matrix that belongs to a loss, known by its products for one batch.

    `Loss.operator(matrix)` is its mean over all the data, where a batch counts by its number of examples; so
    `product` is that of the batch's mean. A matrix of your own is a subclass:

        class Shifted(CurvatureMatrix):
            name = "shifted"                                       # H + I
            decay = 1.0                                            # and weight decay, as in H

            def product(self, loss, vector):
                return {k: v + vector[k] for k, v in Hessian().product(loss, vector).items()}

    To a `Loss`, equal ones are one matrix: a frozen dataclass is the same matrix wherever it is made anew, an
    instance of another class only itself.

    Attributes:
        name: what records and errors call it.
        decay: how many times weight_decay x identity belongs to it; 1 for the Hessian.
        may_vanish: whether it can be nothing but rounding, as a difference of two matrices can: it then need
            not be symmetric.
    """

    name: ClassVar[str]
    decay: ClassVar[float] = 0.0
    may_vanish: ClassVar[bool] = False

    @abstractmethod
    def product(self, loss: LocalLoss, vector: Tensors) -> Tensors:
        """The product with a vector, at loss.parameters.

        A function that torch can trace and differentiate forward: `torch.func` inside, no branch on values.
        """

    def linear_map(self, loss: LocalLoss) -> Multiply:
        """The same product, by reverse over reverse: on graphs that are made here and serve every vector.

        By `torch.autograd`, because what its graphs save is counted as memory that is kept. A matrix without
        it has the modes "linearized" and "forward_reverse" only.
        """
        raise NotImplementedError(f"{self.name} has no products by reverse over reverse")
