"""The processes that `torchrun` started."""

from __future__ import annotations

import os

import torch.distributed as dist

__all__ = ["join_processes"]


def join_processes(device: str) -> dist.ProcessGroup | None:
    """The group of all processes; None if this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.group.WORLD
