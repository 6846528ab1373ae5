"""Everything that a training run needs to go on as if it had never stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from thermoscope.errors import AnalysisError
from thermoscope.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and strings, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer(), AnalysisError)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed.

    Raises:
        AnalysisError: if the file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise AnalysisError(f"{str(path)!r} may not be read; ask for permission.") from error
    except Exception as error:  # torch raises many kinds for a file that is cut short or edited
        raise AnalysisError(f"{str(path)!r} is damaged; delete it to start this run anew.") from error
    if not isinstance(state, dict):
        raise AnalysisError(
            f"{str(path)!r} holds a {type(state).__name__}, no checkpoint of thermoscope train; delete it to "
            "start this run anew."
        )
    return state
