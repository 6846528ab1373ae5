"""The graph of a model: its probed points, and the branches and joins between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probes.user_model import unwrap
from thermoscope.model_state import preserved_modes
from thermoscope.random_state import preserved_random_state

from .trace import Call, trace

__all__ = ["GraphNode", "ModelGraph", "model_graph"]

_MOST_NODES, _MOST_EDGES = 100, 200  # with more than these, probed blocks are drawn closed


@dataclass(frozen=True)
class GraphNode:
    """A place in the picture.

    Attributes:
        name: of the hook point; of several that were merged, the probed one or that with the most weights.
        type: class of the module, or the operation.
        probed: whether it is one of those asked for.
        parts: names of all hook points that it stands for, in execution order.
    """

    name: str
    type: str
    probed: bool
    parts: tuple[str, ...]


@dataclass(frozen=True)
class ModelGraph:
    """How features flow through a model.

    Attributes:
        nodes: in execution order.
        edges: (from, to) by name, each pointing to a later node.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[tuple[str, str], ...]


def model_graph(model: nn.Module, run: Callable[[nn.Module], Any], probed: Sequence[str]) -> ModelGraph:
    """Run the model once and see how features flow between its hook points.

    A block that is probed, or that holds a probe, is opened to show the branches and joins of its own
    code; what it calls is one node. What merely lies between two nodes is merged into the later one.
    Constants, and what neither a probe nor the model's output depends on, are left out. Probed
    blocks are closed where too much would remain to be seen, as in a DenseNet.

    Args:
        model: left as it was: no gradients; its modes, its buffers and all random streams are kept. Auxiliary
            heads that run in training only are seen in train mode.
        run: calls the model once, as in `lambda model: model(x)`.
        probed: names of the hook points that are always kept, such as the layers of a `ProbeResult`.

    Raises:
        ProbeError: for a probed name that does not exist or that the forward does not run.
        AnalysisError: if `run` does not call the model.
    """
    model = unwrap(model)
    with _left_as_it_was(model):
        calls = trace(model, run, probed)
    inside = {parent for call in calls if call.name in probed for parent in _parents(call)}
    blocks = {call for call in calls if call.name in probed}
    graph = _Draft(calls, inside | blocks, set(probed)).graph()
    if len(graph.nodes) > _MOST_NODES or len(graph.edges) > _MOST_EDGES:
        graph = _Draft(calls, inside, set(probed)).graph()
    return graph


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    owners = [module._buffers for module in model.modules()]
    buffers = [(owner, name, b, b.clone()) for owner in owners for name, b in owner.items() if b is not None]
    with preserved_random_state(), preserved_modes(model), torch.no_grad():
        try:
            yield
        finally:
            for owner, name, buffer, content in buffers:
                owner[name] = buffer
                if not torch.equal(buffer, content):
                    buffer.copy_(content)


class _Draft:
    """A graph under construction. Its nodes are calls, in execution order."""

    def __init__(self, calls: list[Call], opened: set[Call], probed: set[str]):
        self._probed = probed
        named = set(calls)
        shown: dict[Call, Call] = {}
        for call in calls:
            shown[call] = _shown(call, opened, named)
            sources = [shown[source] for source in call.sources if source in shown]
            may_go = call in opened and call is not calls[-1] and not self._is_probed(call)
            if call.relays and sources and may_go:
                shown[call] = sources[0]
        self._parts: dict[Call, list[Call]] = {call: [] for call in calls if shown[call] is call}
        self._sources: dict[Call, list[Call]] = {call: [] for call in self._parts}
        for call in calls:
            node = shown[call]
            self._parts[node].append(call)
            for source in sorted((c for c in call.sources if c in named), key=calls.index):
                if shown[source] not in (node, *self._sources[node]):
                    self._sources[node].append(shown[source])
        self._prune(calls)
        self._merge_chains()

    def graph(self) -> ModelGraph:
        names = {node: self._representative(node) for node in self._parts}
        nodes = [
            GraphNode(r.name, r.type, r.name in self._probed, tuple(part.name for part in self._parts[node]))
            for node, r in names.items()
        ]
        edges = [
            (names[source].name, names[node].name) for node in self._parts for source in self._sources[node]
        ]
        return ModelGraph(tuple(nodes), tuple(edges))

    def _is_probed(self, node: Call) -> bool:
        return node.name in self._probed

    def _targets(self) -> dict[Call, list[Call]]:
        targets: dict[Call, list[Call]] = {node: [] for node in self._parts}
        for node, sources in self._sources.items():
            for source in sources:
                targets[source].append(node)
        return targets

    def _prune(self, calls: list[Call]) -> None:
        """Leave out what does not depend on the input, and what nothing depends on."""
        kept_points = [node for node in self._parts if self._is_probed(node)]
        fed = _reached([calls[0], *kept_points], self._targets())
        used = _reached([calls[-1], *kept_points], self._sources)
        kept = fed & used
        if not self._is_probed(calls[-1]):
            kept.discard(calls[-1])  # the model's output, which would only tie its heads together
        self._parts = {node: parts for node, parts in self._parts.items() if node in kept}
        self._sources = {node: [s for s in self._sources[node] if s in kept] for node in self._parts}

    def _merge_chains(self) -> None:
        """Merge a node that is not probed into its only target if it is that one's only source."""
        targets = self._targets()
        for node in list(self._parts):
            if self._is_probed(node) or len(targets[node]) != 1:
                continue
            (target,) = targets[node]
            if len(self._sources[target]) == 1:
                self._parts[target] = self._parts.pop(node) + self._parts[target]
                self._sources[target] = self._sources.pop(node)
                for source in self._sources[target]:
                    targets[source] = [target if t is node else t for t in targets[source]]

    def _representative(self, node: Call) -> Call:
        """The probed part, else the one with the most weights, else what the node begins or ends with."""
        if self._is_probed(node):
            return node
        joins = len(self._sources[node]) > 1
        parts = self._parts[node] if joins else self._parts[node][::-1]
        return max(parts, key=_weights)


def _parents(call: Call) -> Iterator[Call]:
    """The calls that it runs in, innermost first."""
    while call.parent is not None:
        call = call.parent
        yield call


def _shown(call: Call, opened: set[Call], named: set[Call]) -> Call:
    """The outermost closed call around this one, or itself."""
    closed = [c for c in _parents(call) if c in named and c not in opened and c.parent is not None]
    return closed[-1] if closed else call


def _reached(start: list[Call], neighbours: dict[Call, list[Call]]) -> set[Call]:
    found, front = set(start), list(start)
    while front:
        for node in neighbours[front.pop()]:
            if node not in found:
                found.add(node)
                front.append(node)
    return found


def _weights(call: Call) -> int:
    return 0 if call.module is None else sum(p.numel() for p in call.module.parameters())
