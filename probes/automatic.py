"""`layers="auto"`: the blocks that a person would draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from .selection import INPUT

__all__ = ["automatic_layers"]

_MOST = 60  # more blocks than this and their groups are drawn instead


def automatic_layers(model: nn.Module) -> list[str]:
    """Names of the model's input and of its blocks, in the order in which they are defined.

    From the model downwards, a module is opened if it is a mere container, or if a row of blocks makes up
    most of it, as in a stage or an encoder. What is not opened is a block, drawn if it has weights.
    """
    kinds = Counter(_kind(child) for module in model.modules() for child in set(module.children()))
    tree = _Tree("", model, {kind for kind in kinds if kinds[kind] > 1})
    while len(list(tree.blocks())) > _MOST and tree.close_deepest():
        pass
    return [INPUT, *(block.name for block in tree.blocks() if block.name)]


class _Tree:
    """A module, opened into its children or drawn as one block."""

    def __init__(self, name: str, module: nn.Module, repeated: set[object]):
        self.name, self.module = name, module
        opened = not name or _is_opened(module, is_repeated=_kind(module) in repeated)
        prefix = f"{name}." if name else ""
        children = module.named_children() if opened else ()
        self.children = [_Tree(prefix + child, m, repeated) for child, m in children]

    def blocks(self) -> Iterator[_Tree]:
        """What is drawn."""
        if self.children:
            for child in self.children:
                yield from child.blocks()
        elif _is_called(self.module) and _layers(self.module):
            yield self

    def close_deepest(self) -> bool:
        """Draw the modules of the deepest opened level whole; False if there is none to close."""
        opened = [t for t in self._all() if t.children and t.name and _is_called(t.module)]
        deepest = max((t.name.count(".") for t in opened), default=0)
        for tree in opened:
            if tree.name.count(".") == deepest:
                tree.children = []
        return bool(opened)

    def _all(self) -> Iterator[_Tree]:
        yield self
        for child in self.children:
            yield from child._all()


def _is_opened(module: nn.Module, is_repeated: bool) -> bool:
    """Whether a person would look inside.

    A block may itself hold a row, of plain layers like the convolutions of an inverted residual. So a kind
    of module that occurs several times is opened only for a row of blocks that have several layers each.
    """
    if not _is_called(module):
        return True
    if type(module) is nn.Sequential and (len(module) == 1 or not is_repeated):
        return True
    return _is_mostly_a_row(module, fewest_layers=2 if is_repeated else 1)


def _is_mostly_a_row(module: nn.Module, fewest_layers: int) -> bool:
    """Whether members of one kind, one after another, hold most of the module's weights."""
    rows = (_row_size(part, fewest_layers) for part in module.modules() if _is_container(part))
    return max(rows, default=0) > _size(module) / 2


def _row_size(container: nn.Module, fewest_layers: int) -> int:
    """Weights in a container with at least two members of one kind that have so many layers; else 0."""
    kinds = Counter(_kind(m) for m in container.children() if _layers(m) >= fewest_layers)
    return _size(container) if any(count > 1 for count in kinds.values()) else 0


def _kind(module: nn.Module) -> object:
    """Modules are of a kind if they share a class; mere containers, if their members also do."""
    if type(module) in (nn.Sequential, nn.ModuleList):
        return type(module), tuple(type(member) for member in module.children())
    return type(module)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _layers(module: nn.Module) -> int:
    """How many parts have weights: convolutions and matrices, not norms or biases."""
    return sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
