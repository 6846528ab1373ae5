"""Holdings: a digest of what a data set has in memory, and of the files that it names.

The same holdings are evidence of the same rows; others only say that the rows must be looked at. So what may
change without meaning is no harm, and what cannot be looked into (an open database) is passed over.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from typing import Any

import numpy as np
import torch

from ..digests import tensor_bytes

__all__ = ["holdings_digest"]

_NUMBERS = (bool, int, float, complex, np.generic)


def holdings_digest(*parts: Any) -> str:
    """SHA-256 over the tensors, arrays, texts and lists in the attributes of objects, and in theirs.

    Of a file that a text names, and of an array mapped from a file, the size and the time of its last change
    count. A number counts as part of a list only: on its own it is a setting, which concerns all rows alike.
    """
    found = _Holdings()
    for part in parts:
        found.add(part)
    return found.digest.hexdigest()


class _Holdings:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, Any] = {}  # by id; kept, so that no other object takes it

    def add(self, value: Any) -> None:
        if isinstance(value, (str, bytes, os.PathLike)):
            self._note(f"text {value!r}")
            self._add_file(value)
            return
        if value is None or isinstance(value, (*_NUMBERS, type)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._add_tensor(value)
        elif isinstance(value, np.ndarray):
            self._add_array(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._add_items([key, item])
        elif isinstance(value, (list, tuple, deque)):
            self._add_items(value)
        elif isinstance(value, (set, frozenset)):
            self._add_items(sorted(value, key=repr))
        elif isinstance(value, range):
            self._note(repr(value))
        elif hasattr(value, "__array_interface__"):  # an image
            self._add_array(np.asarray(value))
        else:
            self._add_object(value)

    def _add_items(self, items: Any) -> None:
        kinds = set(map(type, items))
        self._note(f"{len(items)} items")
        if kinds <= {int, float, bool}:
            self._note(str(list(items)))
            return
        for item in items:
            if isinstance(item, _NUMBERS):
                self._note(repr(item))
            else:
                self.add(item)

    def _add_object(self, value: Any) -> None:
        self._note(f"{type(value).__module__}.{type(value).__qualname__}")
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        for name, item in {**attributes, **getattr(value, "__dict__", {})}.items():
            self._note(name)
            self.add(item)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        self._note(f"{tensor.dtype} {tuple(tensor.shape)}")
        if not tensor.is_meta and not tensor.is_nested:
            self.digest.update(tensor_bytes(tensor).data)

    def _add_array(self, array: np.ndarray[Any, Any]) -> None:
        self._note(f"{array.dtype} {array.shape}")
        if isinstance(array, np.memmap) and array.filename is not None:
            self._note(f"{array.filename} {array.offset} {array.strides}")
            self._add_file(array.filename)
        elif array.dtype == object:
            self.add(array.tolist())
        else:
            self.digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _add_file(self, path: Any) -> None:
        try:
            found = os.stat(path)
        except (OSError, ValueError):  # no file
            return
        self._note(f"file {found.st_size} {found.st_mtime_ns}")

    def _note(self, text: str) -> None:
        self.digest.update(f"{text}\n".encode(errors="surrogatepass"))
