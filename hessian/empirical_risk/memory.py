"""How much memory there is, how much a graph keeps, and whether it ran out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["counted_saves", "default_limit", "ran_out"]

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def default_limit(device: torch.device) -> int:
    """Bytes to use without being asked: a quarter of the GPU's memory, or of the machine's.

    Of all of it, not of what is free: what else runs must not decide how numbers are computed.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return _machine() // 4


def _machine() -> int:
    """Bytes of the machine's memory, or of the container's share."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            sizes.append(int(file.read_text()))
    return min(sizes)


def ran_out(error: BaseException) -> bool:
    """Whether this is an allocation that failed."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


@contextmanager
def counted_saves() -> Iterator[dict[int, int]]:
    """Bytes of the tensors that autograd saves meanwhile, by storage."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield sizes
