"""Products at fixed weights: trace once, compute what does not depend on the vector once, and keep it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from thermoscope.nests import children, leaves, mapped

from ..empirical_risk.parameters import Tensors
from .matrix import CurvatureMatrix, LocalLoss, Multiply
from .mode import LinearMaps, ProductMode
from .retained import Retained

__all__ = ["Linearized"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Linearized(ProductMode):
    """Jacobian-vector product of the gradient, what does not depend on the vector kept."""

    name = "linearized"
    keeps = True
    way = "forward over reverse"
    checked_by = Retained()  # a trace sees less than Python does

    def prepare(self, matrix: CurvatureMatrix) -> LinearMaps:
        """The matrix's product, traced once per shape of batch."""
        return Linearizer(matrix.product)

    def measured(self, prepared: LinearMaps, loss: LocalLoss) -> tuple[Multiply, int]:
        """The map, and the bytes of its constants."""
        multiply: Any = prepared(loss)
        return multiply, multiply.bytes


class Linearizer:
    """Splits a product into a part without the vector and one with it.

    The idea is `torch.func.linearize`'s, with one difference: the weights and the batch are inputs of the
    trace, so that one trace (a tenth of a second to some seconds) serves all batches of a shape.
    """

    def __init__(self, product: Callable[[LocalLoss, Tensors], Tensors]):
        self._product = product
        self._traces: dict[Any, tuple[GraphModule, GraphModule]] = {}

    def __call__(self, loss: LocalLoss) -> LinearizedMap:
        """The linear map vector -> product(loss, vector).

        Raises:
            Exception: whatever torch raises where an operation has no forward derivative, or the model's
                path depends on the values of its tensors.
        """
        parameters, fixed, batch = loss.parameters, loss.fixed, loss.batch
        key = _signature((dict(parameters), dict(fixed), batch))
        if key not in self._traces:
            self._traces[key] = self._trace(loss)
        before, after = self._traces[key]
        inputs = [*parameters.values(), *fixed.values(), *leaves(batch, torch.Tensor)]
        with torch.no_grad():
            kept = before(*inputs)
        return LinearizedMap(after, kept, list(parameters), _bytes(kept, inputs))

    def _trace(self, loss: LocalLoss) -> tuple[GraphModule, GraphModule]:
        parameters, fixed, batch = loss.parameters, loss.fixed, loss.batch
        names, fixed_names = list(parameters), list(fixed)

        def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
            rest = iter(tensors)
            v = {name: next(rest) for name in names}
            p = {name: next(rest) for name in names}
            f = {name: next(rest) for name in fixed_names}
            traced = mapped(batch, torch.Tensor, lambda _: next(rest))
            there = replace(loss, parameters=p, fixed=f, batch=traced)
            product = self._product(there, v)
            return [product[name] for name in names]

        vectors = [torch.zeros_like(p) for p in parameters.values()]  # inputs must be distinct tensors
        tensors = [*vectors, *parameters.values(), *fixed.values(), *leaves(batch, torch.Tensor)]
        # Fake tensors have no values: a branch on one fails here instead of being taken for all batches.
        trace = make_fx(
            functionalize(flat, remove="mutations"), tracing_mode="fake", _allow_non_fake_inputs=True
        )(*tensors)
        _drop_zeros(trace.graph)
        trace.graph.eliminate_dead_code()
        return _cut(trace, vectors=len(names))


class LinearizedMap:
    """A linear map whose constants are kept.

    Attributes:
        bytes: memory that the constants hold, beyond weights and data.
    """

    def __init__(self, after: GraphModule, kept: Sequence[torch.Tensor], names: list[str], size: int):
        self._after, self._kept, self._names, self.bytes = after, kept, names, size

    def __call__(self, vector: Tensors) -> Tensors:
        """The product with one vector."""
        with torch.no_grad():
            product = self._after(*vector.values(), *self._kept)
        return dict(zip(self._names, product, strict=True))


def _drop_zeros(graph: Graph) -> None:
    """Sums with fresh zeros, as torch's forward derivatives leave them behind, become their other term."""
    output = list(graph.nodes)[-1]
    for node in graph.nodes:
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs or output in node.users:
            continue
        for zeros, other in (node.args, node.args[::-1]):
            if getattr(zeros, "target", None) is aten.zeros_like.default and _alike(node, other):
                node.replace_all_uses_with(other)
                break


def _alike(node: Node, other: Any) -> bool:
    """Whether two tensors of a trace have one shape and dtype."""
    one, two = node.meta.get("val"), getattr(other, "meta", {}).get("val")
    return (
        isinstance(one, torch.Tensor)
        and isinstance(two, torch.Tensor)
        and (one.shape, one.dtype) == (two.shape, two.dtype)
    )


def _cut(trace: GraphModule, vectors: int) -> tuple[GraphModule, GraphModule]:
    """The trace in two: (other inputs) -> constants, and (vector, constants) -> product."""
    nodes = list(trace.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    depends = set(inputs[:vectors])
    for node in nodes:
        if node.op != "output" and any(argument in depends for argument in node.all_input_nodes):
            depends.add(node)
    output = nodes[-1]
    crossing = [
        node
        for node in nodes
        if node not in depends
        and node.op != "output"
        and any(user in depends or user is output for user in node.users)
    ]
    before, copies = Graph(), dict[Node, Node]()
    for node in nodes:
        if node not in depends and node.op != "output":
            copies[node] = before.node_copy(node, copies.__getitem__)
    before.output([copies[node] for node in crossing])
    before.eliminate_dead_code()

    after, copies = Graph(), {}
    for node in inputs[:vectors]:
        copies[node] = after.placeholder(node.name)
    for node in crossing:
        copies[node] = after.placeholder(node.name)
    for node in nodes:
        if node in depends and node.op != "placeholder":
            copies[node] = after.node_copy(node, copies.__getitem__)
    after.output([copies[node] for node in output.args[0]])
    return GraphModule(trace, before), GraphModule(trace, after)


def _signature(value: Any) -> Any:
    """What a trace is specific to: structure, shapes, dtypes, devices, and everything that is no tensor."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    parts = children(value)
    if not parts:
        return repr(value)
    return type(value), tuple((key, _signature(part)) for key, part in parts.items())


def _bytes(tensors: Sequence[torch.Tensor], without: Sequence[torch.Tensor]) -> int:
    known = {t.untyped_storage().data_ptr() for t in without}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for pointer, size in found.items() if pointer not in known)
