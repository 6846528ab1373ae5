"""The processes that `torchrun` started."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from thermoscope.errors import LeftAloneError

__all__ = ["following", "join_processes", "leave", "part"]

_PATIENCE = 10.0  # seconds in which torchrun ends the others when one has failed; it takes some tenths


def join_processes(device: str) -> dist.ProcessGroup | None:
    """The group of all processes; None if this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.group.WORLD


def part() -> None:
    """Leave the group when all is done: its threads must not outlive the interpreter, which aborts then."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def following() -> Iterator[None]:
    """In a process that takes orders: Ctrl-C, which reaches all, is for the one that gives them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(sentence: str, error: BaseException) -> None:
    """End this process, one of several, after an error; the first to fail on a machine says why.

    The others learn of it by a connection that is cut, and have nothing to add.
    """
    if isinstance(error, LeftAloneError):
        time.sleep(_PATIENCE)  # if somebody knows more, torchrun ends this process meanwhile
    if _is_first():
        print(sentence, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # the interpreter's own exit would wait for the threads of a broken connection


def _is_first() -> bool:
    """Whether no process here has spoken yet, by a mark in the folder that `torchrun` made for them all."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return True
    mark = Path(file).parents[1] / "thermoscope"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True
