"""The snapshots of a run, and measurements of them that compare because they were made alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thermoscope.errors import AnalysisError
from thermoscope.files import write_atomically
from thermoscope.random_state import preserved_random_state, seed_streams

from ..sources.data import DataSplits, load_data
from ..sources.preprocessing import Preprocessing
from .records import RunRecords, read_config

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["chosen_snapshots", "fingerprint", "keep_to_settings", "training_config", "training_data"]


_OF_THE_DATA = ("model", "data", "data_dir", "image_size", "rgb", "seed")  # settings that a run's data need


def training_config(path: Path) -> dict[str, Any]:
    """The settings of a run of `thermoscope train`.

    Raises:
        AnalysisError: if the folder holds none.
    """
    config = read_config(path)
    missing = [key for key in _OF_THE_DATA if key not in config]
    if missing:
        raise AnalysisError(f"{str(path)!r} is no run of thermoscope train; give the folder of one to --run.")
    return config


def training_data(config: Mapping[str, Any]) -> DataSplits:
    """The data that a run was trained on, from its settings.

    Raises:
        AnalysisError: if they are no longer there, or are others now.
    """
    with preserved_random_state():
        seed_streams(config["seed"])
        data = load_data(
            config["data"],
            data_dir=config["data_dir"],
            preprocessing=Preprocessing(size=config["image_size"], rgb=config["rgb"]),
            seed=config["seed"],
        )
    if config.get("data_fingerprint", now := fingerprint(data, config["seed"])) != now:
        raise AnalysisError(f"the data of {config['data']!r} are not those that the run was trained on.")
    return data


def fingerprint(data: DataSplits, seed: int) -> str:
    """A text that is the same for the same data, also where they are augmented at random."""
    with preserved_random_state():
        seed_streams(seed)
        return data.fingerprint()


def chosen_snapshots(run: RunRecords, steps: Sequence[int]) -> dict[int, Path]:
    """The files of these steps, or of all if there are none.

    Raises:
        AnalysisError: for a step without a snapshot, and for a run without any.
    """
    snapshots = run.snapshots()
    if not snapshots:
        raise AnalysisError(
            f"{str(run.path)!r} has no snapshots; train with --snapshots log:20, say, to have some."
        )
    missing = [step for step in steps if step not in snapshots]
    if missing:
        raise AnalysisError(
            f"{str(run.path)!r} has no snapshot of step {missing[0]}; there are "
            f"{', '.join(map(str, snapshots))}."
        )
    return {step: snapshots[step] for step in steps or snapshots}


def keep_to_settings(
    file: Path, settings: DataclassInstance, *, begun: bool, free: Sequence[str] = ()
) -> None:
    """One set of results per run, so that they compare: write the settings, or refuse others.

    Args:
        file: JSON of the settings.
        settings: as they are now.
        begun: whether there are results already, made with what the file says.
        free: the names of those that may change.

    Raises:
        AnalysisError: if they differ, or if the file is damaged.
    """
    now = {k: v for k, v in json.loads(json.dumps(asdict(settings))).items() if k not in free}
    if not begun:
        write_atomically(file, (json.dumps(now, indent=2) + "\n").encode(), AnalysisError)
        return
    try:
        before = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        raise AnalysisError(f"{str(file)!r} is damaged or missing; delete its folder to start anew.")
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        key = changed[0]
        raise AnalysisError(
            f"what is in {str(file.parent)!r} was made with {key}={before.get(key)!r}, not "
            f"{now[key]!r}; keep to that, or delete that folder to start anew."
        )
