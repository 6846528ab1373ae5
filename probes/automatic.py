"""`layers="auto"`: the blocks that a person would draw."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .selection import INPUT

__all__ = ["automatic_layers"]

_MOST = 64  # more blocks than this and their groups are drawn instead


def automatic_layers(model: nn.Module) -> list[str]:
    """Names of the model's input and of its blocks, in the order in which they are defined.

    From the model downwards, a module is opened while it holds a row of blocks: a `Sequential`, a
    `ModuleList`, or a module of the user's that holds one with at least two members of one class. What is
    not opened is a block; of torch's own layers only those with weights and no norm are drawn.
    """
    tree = _Tree("", model)
    while len(list(tree.blocks())) > _MOST and tree.close_deepest():
        pass
    names = [tree.name for tree in tree.blocks()]
    return [INPUT, *(name for name in names if name)] or [INPUT]


class _Tree:
    """A module, opened into its children or drawn as one block."""

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module
        opened = not name or _is_row(module) or any(_is_row_of_blocks(m) for m in module.modules())
        prefix = f"{name}." if name else ""
        self.children = [_Tree(prefix + child, m) for child, m in module.named_children()] if opened else []

    def blocks(self) -> Iterator[_Tree]:
        """What is drawn."""
        if self.children:
            for child in self.children:
                yield from child.blocks()
        elif _is_drawn(self.module):
            yield self

    def close_deepest(self) -> bool:
        """Draw the callable modules of the deepest opened level whole; False if none is left."""
        opened = [t for t in self._all() if t.children and t.name and _is_callable(t.module)]
        deepest = max((t.name.count(".") for t in opened), default=0)
        for tree in opened:
            if tree.name.count(".") == deepest:
                tree.children = []
        return bool(opened)

    def _all(self) -> Iterator[_Tree]:
        yield self
        for child in self.children:
            yield from child._all()


def _is_row(module: nn.Module) -> bool:
    """A container whose members run one after another, and that is no block of its own."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and not _is_callable(module):
        return len(module) > 0
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module) > 1
    )


def _is_row_of_blocks(module: nn.Module) -> bool:
    """A container with at least two blocks of one class, such as the layers of an encoder."""
    if not _is_row(module):
        return False
    kinds = [
        type(m) for m in module.children() if not _is_torchs_own(m) and any(True for _ in m.parameters())
    ]
    return any(kinds.count(kind) > 1 for kind in kinds)


def _is_callable(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def _is_torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules") and not list(module.children())


def _is_drawn(module: nn.Module) -> bool:
    """Blocks with weights: convolutions and matrices, not norms, activations or dropout."""
    return _is_callable(module) and any(p.ndim > 1 for p in module.parameters())
