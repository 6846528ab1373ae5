"""How much memory there is, and whether it ran out."""

from __future__ import annotations

import os

import torch

__all__ = ["default_limit", "ran_out"]


def default_limit(device: torch.device) -> int:
    """Bytes to use without being asked: a quarter of the GPU's or of the machine's memory.

    Of all of it, not of what is free: what else runs must not decide how numbers are computed.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def ran_out(error: BaseException) -> bool:
    """Whether this is an allocation that failed."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
