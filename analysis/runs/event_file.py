"""A file of TensorBoard events, each written when the call returns."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from thermoscope.errors import AnalysisError
from thermoscope.files import append_bytes

__all__ = ["EventFile"]

_numbers = itertools.count()


class EventFile:
    """Writes without a thread, so that a full disk is an exception here and not a traceback elsewhere.

    Args:
        folder: in which the file is made.
        purge_step: let TensorBoard forget what earlier files say of this step and later ones.

    Raises:
        AnalysisError: here and in `add`, if the file cannot be written; what was there remains.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        stamp = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / f"events.out.tfevents.{stamp}"
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def add(self, summaries: list[Summary], step: int) -> None:
        """Add summaries of a step."""
        self._write(*(Event(wall_time=time.time(), step=step, summary=summary) for summary in summaries))

    def _write(self, *events: Event) -> None:
        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        for event in events:
            records.write(event.SerializeToString())
        append_bytes(self._path, buffer.getvalue(), AnalysisError, sync=False)
