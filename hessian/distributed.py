"""Several processes, each with a part of the data; one of them drives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, Subset

from thermoscope.errors import HessianError, LeftAloneError, reason

from .empirical_risk.batch_loss import Objective
from .products.matrix import CurvatureMatrix
from .products.mode import ProductMode
from .products.symmetric import SymmetricOperator

__all__ = ["Team"]

T = TypeVar("T", CurvatureMatrix, ProductMode)

_STOP, _ALONG, _GRADIENT, _OPERATOR, _MULTIPLY = range(5)


class _Shared(Protocol):
    """What a team needs of a `Loss`."""

    objective: Objective

    def along(self, directions: Any, coefficients: Any) -> Any: ...
    def gradient(self) -> Any: ...
    def operator(self, matrix: CurvatureMatrix, mode: ProductMode) -> SymmetricOperator: ...


class Team:
    """The processes of a group, as `torchrun` starts them.

        team = Team()                                    # after torch.distributed.init_process_group
        loss = Loss(model, F.cross_entropy, team.shard(data), team=team)
        with team.lead(loss) as leading:                 # the others compute in here until the leader is done
            if leading:
                spectrum = extreme_eigenpairs(loss.hessian(), 20, 3)

    Losses, gradients and products are sums over all processes. The process of rank 0 runs the solver; the
    others wait for its orders, which are numbers and tensors, never pickles. It sends its weights along.

    Matrices and modes go by the numbers under which all processes know them. The library's own are known from
    the start; one of your own is, once every process has made an operator with it before one of them leads.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._leading = False
        self._matrices: list[CurvatureMatrix] = []  # these two in the same order in all processes
        self._modes: list[ProductMode] = []
        self._newest: dict[int, int] = {}  # number of the operators that all have, by matrix

    def shard(self, data: Any) -> Any:
        """This process's part of a map-style `Dataset` or a list of batches: every size-th element."""
        if isinstance(data, Dataset):
            return Subset(data, range(self.rank, len(data), self.size))  # type: ignore[arg-type]
        return data[self.rank :: self.size]

    @contextmanager
    def lead(self, loss: _Shared) -> Iterator[bool]:
        """True in the process that drives; the others work until it leaves this block, then get False.

        Raises:
            HessianError: if another process has died.
        """
        if self.rank != 0:
            self._serve(loss)
            yield False
            return
        self._leading, self._newest = True, {}
        try:
            yield True
        finally:
            self._order(loss.objective, _STOP)
            self._leading = False

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        with _sentences():
            dist.all_reduce(tensor, group=self._group)
        return tensor

    # -- orders -------------------------------------------------------------------------------------

    def announce_along(self, objective: Objective, directions: torch.Tensor, points: torch.Tensor) -> None:
        """Let the others take part in `Loss.along`."""
        if self._order(objective, _ALONG, *points.shape):
            self._share_weights(objective)
            self._share(directions)
            self._share(points)

    def announce_gradient(self, objective: Objective) -> None:
        """Let the others take part in `Loss.gradient`."""
        if self._order(objective, _GRADIENT):
            self._share_weights(objective)

    def know(self, matrices: Iterable[CurvatureMatrix], modes: Iterable[ProductMode]) -> None:
        """Let orders name these by number; every process calls this."""
        for matrix in matrices:
            self._number(matrix, self._matrices)
        for mode in modes:
            self._number(mode, self._modes)

    def _number(self, value: T, known: list[T]) -> int:
        if value not in known:
            if self._leading:
                raise HessianError(
                    f"the other processes do not know {value.name!r}; make an operator with it in every "
                    "process before one of them leads."
                )
            known.append(value)
        return known.index(value)

    def announce_operator(
        self, objective: Objective, matrix: CurvatureMatrix, mode: ProductMode
    ) -> tuple[int, int]:
        """Let the others make the same operator; its matrix's number and its own.

        They keep only the newest of each matrix.
        """
        kind, way = self._number(matrix, self._matrices), self._number(mode, self._modes)
        if self._order(objective, _OPERATOR, kind, way):
            self._share_weights(objective)
            self._newest[kind] = self._newest.get(kind, -1) + 1
        return kind, self._newest.get(kind, -1)

    def announce_multiply(self, kind: int, number: int, vectors: torch.Tensor) -> None:
        """Let the others take part in a product.

        Raises:
            HessianError: with an operator that the others have not, or no longer.
        """
        if self._leading and self._newest.get(kind) != number:
            raise HessianError(
                "the other processes have this operator no longer; use the newest of its kind, made while "
                "this process leads."
            )
        if self._order(vectors, _MULTIPLY, kind, len(vectors)):
            self._share(vectors)

    def _order(self, there: Objective | torch.Tensor, *numbers: int) -> bool:
        """Send an order, if this is the leader's own call and not its part of a common one."""
        if not self._leading:
            return False
        header = torch.zeros(4, dtype=torch.int64, device=there.device)
        header[: len(numbers)] = torch.tensor(numbers)
        self._share(header)
        return True

    def _share(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel():
            with _sentences():
                dist.broadcast(
                    tensor, dist.get_global_rank(self._group, 0) if self._group else 0, self._group
                )
        return tensor

    def _share_weights(self, objective: Objective) -> None:
        with torch.no_grad():
            for tensor in objective.model.state_dict().values():
                if isinstance(tensor, torch.Tensor):
                    self._share(tensor)

    def _serve(self, loss: _Shared) -> None:
        operators: dict[int, SymmetricOperator] = {}
        objective = loss.objective
        empty: dict[str, Any] = {"device": objective.device}
        while True:
            order, a, b, _ = self._share(torch.zeros(4, dtype=torch.int64, **empty)).tolist()
            if order == _STOP:
                return
            if order != _MULTIPLY:
                self._share_weights(objective)
            if order == _ALONG:
                directions = self._share(torch.empty(b, objective.size, dtype=torch.float64, **empty))
                loss.along(directions, self._share(torch.empty(a, b, dtype=torch.float64, **empty)))
            elif order == _GRADIENT:
                loss.gradient()
            elif order == _OPERATOR:
                operators.pop(a, None)  # before the new one takes memory
                operators[a] = loss.operator(self._matrices[a], self._modes[b])
            else:
                vectors = torch.empty(b, objective.size, dtype=objective.vector_dtype, **empty)
                operators[a].multiply(self._share(vectors))


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LeftAloneError(
            f"another process of the group has died or left ({reason(error)[:120]}); look at its output, "
            "and start the run again."
        ) from error
