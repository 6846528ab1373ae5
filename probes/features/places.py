"""Where in the user's code the calls of modules and functions are, which their numbers do not say."""

from __future__ import annotations

import os
import sys
from types import FrameType

import torch

__all__ = ["Place", "Places"]

Place = tuple[str, int]  # a file and a line
_NOT_THE_USERS = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))


class Places:
    """The line at which each numbered call was seen first, and those that have moved since."""

    def __init__(self) -> None:
        self.moved: dict[str, tuple[Place, Place]] = {}  # in the forward under way: then and now
        self._first: dict[str, Place] = {}

    def note(self, name: str, call: FrameType | None) -> None:
        """A call of that name is made, inside the model's, whose frame is `call`."""
        place = _place(call)
        if place is not None and self._first.setdefault(name, place) != place:
            self.moved[name] = self._first[name], place


def _place(call: FrameType | None) -> Place | None:
    """The innermost line of the user's inside the model's call; None if no code of theirs is between."""
    frame: FrameType | None = sys._getframe()
    found: Place | None = None
    while frame is not None and frame is not call:
        if found is None and not frame.f_code.co_filename.startswith(_NOT_THE_USERS):
            found = frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return found if frame is not None else None
