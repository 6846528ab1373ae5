"""Several processes that fill one feature store."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from thermoscope.errors import ProbeError

__all__ = ["Processes"]


class Processes:
    """The processes of a group; by default of all that `torch.distributed` knows, or this one alone.

    Raises:
        ProbeError: if there are several that do not know of each other.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self._group, self.rank, self.size, self._device = group, 0, 1, "cpu"
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
            self._device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ProbeError(
                "several processes were started (WORLD_SIZE is set) but do not know of each other; call "
                "torch.distributed.init_process_group() before extracting."
            )

    def require_same(self, digest: str, what: str) -> None:
        """Wait for all processes, and refuse hexadecimal digests that differ between them.

        Raises:
            ProbeError: in all of them.
        """
        if self.size == 1:
            return
        own = torch.tensor([int(digest[:15], 16)], device=self._device)
        least, most = own.clone(), own.clone()
        dist.all_reduce(least, dist.ReduceOp.MIN, self._group)
        dist.all_reduce(most, dist.ReduceOp.MAX, self._group)
        if least.item() != most.item():
            raise ProbeError(f"the processes were given different {what}; give all of them the same.")

    def wait(self) -> None:
        """Wait for all processes; an error if one has failed."""
        self.require_same("0", "")

    def first_does(self, work: Callable[[], None]) -> None:
        """The first process does something, and the others wait until it is done.

        Raises:
            ProbeError: in all of them, if it failed.
        """
        error: Exception | None = None
        if self.rank == 0:
            try:
                work()
            except Exception as caught:
                error = caught
        if self.size > 1:
            failed = torch.tensor([error is not None], dtype=torch.int64, device=self._device)
            dist.all_reduce(failed, dist.ReduceOp.MAX, self._group)
            if failed.item() and error is None:
                raise ProbeError("the store cannot be written; the first process says why.")
        if error is not None:
            raise error
