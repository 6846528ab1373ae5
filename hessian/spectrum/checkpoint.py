"""The state of an unfinished eigenpair computation, in one file that is there whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thermoscope.errors import HessianError
from thermoscope.files import atomic_file, readable_errors

__all__ = ["SavedRun"]

Arrays = dict[str, npt.NDArray[Any]]

# Between restarts the state is written after this many seconds, and after this many times what a write takes.
_INTERVAL = 60.0
_PATIENCE = 20.0


class SavedRun:
    """A file (.npz) for the state of one computation.

    Args:
        path: the file; it need not exist.
        request: what is computed; a file of another request is refused.
    """

    def __init__(self, path: str | os.PathLike[str], request: Mapping[str, object]):
        self.path = Path(path)
        if self.path.is_dir():
            raise HessianError(f"{self.path} is a folder; save_to is the name of a file.")
        self._request = json.dumps(request, sort_keys=True)
        self._due = time.monotonic() + _INTERVAL

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last `save`."""
        return time.monotonic() >= self._due

    def save(self, arrays: Arrays) -> None:
        """Write the state: to a temporary name, and only when it is on the disk under its own.

        Raises:
            HessianError: if it cannot be written; what was there remains.
        """
        begin = time.monotonic()
        with readable_errors(self.path, HessianError), atomic_file(self.path) as file:
            np.savez(file, request=np.array(self._request), **arrays)  # type: ignore[arg-type]
        now = time.monotonic()
        self._due = now + max(_INTERVAL, _PATIENCE * (now - begin))

    def load(self) -> Arrays | None:
        """The state, or None if there is none.

        Raises:
            HessianError: if the file is damaged or belongs to another computation.
        """
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            request = str(arrays.pop("request"))
        except FileNotFoundError:
            return None
        # Damage shows as anything: no zip archive, a bad checksum, a missing name, a pickle, no memory.
        except Exception as error:
            raise self.damaged() from error
        if request != self._request:
            raise HessianError(
                f"{self.path} belongs to another computation ({request}), not to this one ({self._request}); "
                f"delete it or choose another name for save_to."
            )
        return arrays

    def damaged(self) -> HessianError:
        """The error for contents that make no sense."""
        return HessianError(f"{self.path} is damaged: it cannot be continued from; delete it to start over.")

    def foreign(self) -> HessianError:
        """The error for a state that another operator has left."""
        return HessianError(
            f"{self.path} was made with another operator of the same size; delete it to start over."
        )

    def remove(self) -> None:
        """The computation is finished."""
        self.path.unlink(missing_ok=True)
