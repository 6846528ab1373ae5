"""What the dimensions of tensors are: evidence, never sizes.

Each dimension of each tensor of a forward is an `Axis`. Operations that keep a dimension keep its axis, those
that align dimensions unite their axes, and layers that know what a dimension is claim it, so that evidence
flows forward and backward through all that the dimension went through. What is read off at the end are the
letters of a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, TypeAlias

__all__ = ["Axes", "Axis", "Strength", "letters_of", "merged", "new_axes", "regrouped"]

Kind: TypeAlias = Literal["B", "C", "P"]  # examples of a batch, channels, positions
Axes: TypeAlias = "tuple[Axis, ...]"
Atom: TypeAlias = "tuple[Axis, int]"  # with its size


class Strength(IntEnum):
    """How much a claim weighs against another kind's."""

    ARGUMENT = 1  # the first dimension of one of the model's further arguments holds the examples
    SHARED = 2  # the same weights are applied at each place, so it is a position
    INPUT = 3  # the first dimension of the model's first argument holds the examples
    MADE = 4  # the numbers that a matrix gives are channels
    SURE = 5  # a convolution, norm, embedding, recurrent or attention layer was made for it


class Axis:
    """One dimension of the tensors that have it.

    Args:
        parts: the axes and sizes that were flattened into this one.
        whole: the axis of which this is one of several parts: what that is, this is too, but not the reverse.
        is_constant: whether it is of a tensor that no input of the model has gone into.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Axis, int]] = (),
        *,
        whole: Axis | None = None,
        is_constant: bool = False,
    ):
        self.parts, self.is_constant = tuple(parts), is_constant
        self._wholes = [] if whole is None else [whole]
        self._same: Axis | None = None
        self._claims: dict[Kind, Strength] = {}

    @property
    def root(self) -> Axis:
        """The axis that stands for all that are united with it."""
        axis = self
        while axis._same is not None:
            axis = axis._same
        return axis

    @property
    def origins(self) -> list[Axis]:
        """The axes that it was once split off, or itself; several where parts of several were united."""
        root = self.root
        return [origin for whole in root._wholes for origin in whole.origins] or [root]

    def claim(self, kind: Kind, strength: Strength) -> None:
        """Note evidence of what it is. Positions are so in all their parts."""
        root = self.root
        root._claims[kind] = max(strength, root._claims.get(kind, strength))
        for part, _ in root.parts if kind == "P" else ():
            if "B" not in part.claims():
                part.claim(kind, strength)

    def unite(self, other: Axis) -> None:
        """They are one and the same dimension."""
        a, b = self.root, other.root
        if a is b or a._needs(b) or b._needs(a):
            return
        kept, gone = (a, b) if a.parts or not b.parts else (b, a)
        gone._same = kept
        kept._wholes += gone._wholes
        for kind, strength in gone._claims.items():
            kept.claim(kind, strength)
        if len(a.parts) == len(b.parts):
            for (part, _), (other_part, _) in zip(a.parts, b.parts, strict=True):
                part.unite(other_part)

    def _needs(self, other: Axis) -> bool:
        """Whether what it is follows from the other."""
        sources = [*(part for part, _ in self.parts), *self._wholes]
        return any(source.root is other or source.root._needs(other) for source in sources)

    def claims(self) -> dict[Kind, Strength]:
        """The strongest evidence for each kind: its own, and what follows from its parts."""
        root = self.root
        found = dict(root._claims)
        for whole in root._wholes:
            for kind, strength in whole.claims().items():
                found[kind] = max(strength, found.get(kind, strength))
        inner = [(part.kind, part.claims()) for part, _ in root.parts]
        for kind in ("B", "C"):  # examples and others are rows; channels and others are channels
            strengths = [claims[kind] for part_kind, claims in inner if part_kind == kind]
            if strengths:
                found[kind] = max(strengths)
                return found
        if inner and all(kind == "P" for kind, _ in inner):
            weakest = min(claims["P"] for _, claims in inner)
            found["P"] = max(found.get("P", weakest), weakest)
        return found

    @property
    def kind(self) -> Kind | None:
        """What most speaks for; None without evidence, or where it contradicts itself."""
        claims = self.claims()
        best = [kind for kind, strength in claims.items() if strength == max(claims.values())]
        return best[0] if len(best) == 1 else None


def new_axes(count: int, *, is_constant: bool = False) -> Axes:
    """Axes that nothing else is known of."""
    return tuple(Axis(is_constant=is_constant) for _ in range(count))


def merged(parts: Sequence[tuple[Axis, int]]) -> Axis:
    """Dimensions flattened into one."""
    if len(parts) == 1:
        return parts[0][0]
    common = common_origin([part for part, _ in parts])
    return Axis(parts) if common is None else common


def common_origin(axes: Sequence[Axis]) -> Axis | None:
    """The axis that all of these are parts of."""
    others = [axis.origins for axis in axes[1:]]
    return next((o for o in axes[0].origins if all(o in origins for origins in others)), None)


def regrouped(axes: Axes, sizes: Sequence[int], wanted: Sequence[int]) -> Axes:
    """The axes of a tensor that was reshaped.

    A reshape keeps the order of the numbers, so each new dimension takes what comes next: whole dimensions,
    or the outer part of one. Where sizes do not divide each other, several new ones share several old ones.
    What was flattened before comes apart again where it has the sizes of its parts.
    """
    atoms = [atom for axis, size in zip(axes, sizes, strict=True) for atom in _atoms(axis, size)][::-1]
    found: list[Axis] = []
    while len(found) < len(wanted):
        count, parts = _next_group(atoms, wanted[len(found) :])
        axis = merged(parts) if parts else Axis()
        group = wanted[len(found) : len(found) + count]
        found += [Axis() if count > 1 and size == 1 else axis for size in group]
    return tuple(found)


def _next_group(atoms: list[Atom], wanted: Sequence[int]) -> tuple[int, list[Atom]]:
    """How many of the next new dimensions go together, and the atoms that they take from `atoms`' end."""
    count, want, have = 1, wanted[0], 1
    parts: list[Atom] = []
    if want == 1 and atoms and atoms[-1][1] != 1:
        return 1, []
    while atoms and (have != want or not parts):
        axis, size = atoms.pop()
        rest = want // have
        if 0 < rest < size and size % rest == 0 and count == 1 and want % have == 0:
            atoms.append((Axis(whole=axis), size // rest))
            axis, size = Axis(whole=axis), rest
        parts.append((axis, size))
        have *= size
        while have > want and count < len(wanted):
            want, count = want * wanted[count], count + 1
    return count, parts


def _atoms(axis: Axis, size: int) -> list[tuple[Axis, int]]:
    """The parts of an axis that has its original size; else itself."""
    parts = axis.root.parts
    product = 1
    for _, part_size in parts:
        product *= part_size
    if not parts or product != size:
        return [(axis, size)]
    return [atom for part, part_size in parts for atom in _atoms(part, part_size)]


def letters_of(axes: Axes, *, batch_comes_first: bool) -> str:
    """The layout that the evidence shows: `"BCHW"`, `"TBC"`, `"B??"`; without B if it shows no examples.

    Positions are T before channels, L behind them, HW and DHW, otherwise P.

    Args:
        axes: of a tensor.
        batch_comes_first: whether dimension 0 holds the examples where nothing is known of it, as behind a
            function without a rule.
    """
    claims = [axis.claims() for axis in axes]
    batch = _batch(axes, claims, batch_comes_first)
    if len(axes) == 2 and batch is not None:
        return "BC" if batch == 0 else "CB"
    channels = _channels(axes, claims, batch)
    letters = [
        "B" if i == batch else "C" if i in channels else "P" if "P" in claim else "?"
        for i, claim in enumerate(claims)
    ]
    if "?" not in letters and channels:
        places = [i for i, letter in enumerate(letters) if letter == "P"]
        name = {1: "T" if letters[-1] == "C" else "L", 2: "HW", 3: "DHW"}.get(len(places), "")
        for i, letter in zip(places, name, strict=False):
            letters[i] = letter
    return "".join(letters)


def _batch(axes: Axes, claims: Sequence[dict[Kind, Strength]], comes_first: bool) -> int | None:
    found = [i for i, axis in enumerate(axes) if axis.kind == "B"]
    if found:
        return max(found, key=lambda i: (claims[i]["B"], -i))
    is_unknown = bool(axes) and not claims[0] and not axes[0].origins[0].is_constant
    return 0 if comes_first and is_unknown else None


def _channels(axes: Axes, claims: Sequence[dict[Kind, Strength]], batch: int | None) -> list[int]:
    """The dimensions with the strongest evidence; none if it is for two that are not parts of one."""
    candidates = [
        i
        for i, claim in enumerate(claims)
        if i != batch and claim.get("C", 0) > max(claim.get("P", 0), claim.get("B", 0))
    ]
    strongest = max((claims[i]["C"] for i in candidates), default=None)
    found = [i for i in candidates if claims[i]["C"] == strongest]
    return found if found and common_origin([axes[i] for i in found]) is not None else []
