"""`layers="auto"`: the blocks that a person would draw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from inspect import getattr_static

from torch import nn
from torch.nn.parameter import is_lazy

from .patterns import INPUT

__all__ = ["automatic_layers"]

_MOST = 60  # more blocks than this and their groups are drawn instead
_MAIN_PART = 0.75  # of a module's weights, in the row that it stands for
_POSITIONS = re.compile("Pos(ition(al)?)?(Emb|Enc|Bias|Mlp)")  # classes that add positions, not features


def automatic_layers(model: nn.Module) -> list[str]:
    """Names of the model's input and of its blocks, in the order in which they are defined.

    From the model downwards, a module is opened if it is a mere container, or if a row of blocks makes up
    most of it or of another of its class, as in a stage or an encoder. What is not opened is a block, drawn
    if it has weights.
    """
    tree = _Tree("", model, _opened_modules(model))
    while len(list(tree.blocks())) > _MOST and tree.close_deepest():
        pass
    names = dict(model.named_modules())  # without the further names of a module registered twice
    return [INPUT, *(block.name for block in tree.blocks() if block.name and block.name in names)]


class _Tree:
    """A module, opened into its children or drawn as one block."""

    def __init__(self, name: str, module: nn.Module, opened: set[nn.Module]):
        self.name, self.module = name, module
        prefix = f"{name}." if name else ""
        children = module.named_children() if not name or module in opened else ()
        self.children = [_Tree(prefix + child, m, opened) for child, m in children]

    def blocks(self) -> Iterator[_Tree]:
        """What is drawn."""
        if self.children:
            for child in self.children:
                yield from child.blocks()
        elif _is_called(self.module) and _layers(self.module) and not _adds_positions(self.module):
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


def _opened_modules(model: nn.Module) -> set[nn.Module]:
    """Those inside which a person would look.

    A block may itself hold a row, of plain layers like the convolutions of an inverted residual. So a kind
    of module that occurs several times is opened only for a row of blocks that have several layers each.
    """
    counts = Counter(_kind(child) for module in model.modules() for child in module.children())
    opened, classes = set(), set()
    for module in model.modules():
        is_repeated = counts[_kind(module)] > 1
        is_mere = type(module) is nn.Sequential and (len(module) == 1 or not is_repeated)
        if is_mere or not _is_called(module):
            opened.add(module)
        elif _is_mostly_a_row(module, fewest_layers=2 if is_repeated else 1):
            opened.add(module)
            classes.add(type(module))
    classes.discard(nn.Sequential)
    return opened | {module for module in model.modules() if type(module) in classes}


def _is_mostly_a_row(module: nn.Module, fewest_layers: int) -> bool:
    """Whether a row of blocks holds most of the module's weights."""
    rows = (_row_size(part, fewest_layers) for part in module.modules() if _is_container(part))
    return max(rows, default=0) > _MAIN_PART * _size(module)


def _row_size(container: nn.Module, fewest_layers: int) -> int:
    """Weights in a container with at least two members that have so many layers; else 0."""
    blocks = sum(_layers(member) >= fewest_layers for member in container.children())
    return _size(container) if blocks > 1 else 0


def _kind(module: nn.Module) -> object:
    """Modules are of a kind if they share a class; mere containers, if their members also do."""
    if type(module) in (nn.Sequential, nn.ModuleList):
        return type(module), tuple(type(member) for member in module.children())
    return type(module)


def _is_container(module: nn.Module) -> bool:
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return True
    children = {(name.rstrip("0123456789"), _kind(child)) for name, child in module.named_children()}
    return len(children) == 1  # such as `b1`, `b2`, `b3`: as good as a container


def _is_called(module: nn.Module) -> bool:
    # TorchScript's modules have no answer to plain attribute access.
    return getattr_static(type(module), "forward", None) is not nn.Module.forward


def _adds_positions(module: nn.Module) -> bool:
    return _POSITIONS.search(type(module).__name__) is not None


def _layers(module: nn.Module) -> int:
    """How many parts have weights: convolutions and matrices, not norms or biases."""
    return sum(
        any(is_lazy(p) or p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules()
    )


def _size(module: nn.Module) -> int:
    """Weights, but for those of each word: embeddings, and matrices of their shape, which give words."""
    words = {part.weight.shape for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if not is_lazy(p) and p.shape not in words)
