"""The random streams that are everybody's, Python's, NumPy's and torch's: seeded, saved and put back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["preserved_random_state", "random_state", "restore_random_state", "seed_streams"]


def seed_streams(*key: object) -> None:
    """Seed all three from a key; the same key gives the same numbers. A single number is taken as it is."""
    if len(key) == 1 and isinstance(key[0], int):
        seed = key[0]
    else:
        seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def preserved_random_state(*loaders: object) -> Iterator[None]:
    """Restore Python's, NumPy's, torch's CPU and CUDA streams, and the loaders' own, on leaving.

    Merely starting to iterate a `DataLoader` draws from its generator, or from torch's global stream.
    """
    before = _state()
    generators = [generator for loader in loaders for generator in _generators_of(loader)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        _restore(*before)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def random_state() -> dict[str, Any]:
    """The state of the three streams, as tensors, numbers and strings, for a file."""
    (version, words, gauss), (name, keys, *numbers), cpu, cuda = _state()
    assert name == "MT19937"
    return {
        "python": (version, list(words), gauss),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), *numbers),
        "torch": cpu,
        "cuda": cuda,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the streams back to where `random_state` found them."""
    version, words, gauss = state["python"]
    keys, *numbers = state["numpy"]
    _restore(
        (version, tuple(words), gauss),
        ("MT19937", keys.numpy().astype(np.uint32), *numbers),
        state["torch"],
        state["cuda"],
    )


def _state() -> tuple[Any, Any, torch.Tensor, list[torch.Tensor]]:
    # Where CUDA has not been used yet, to ask would make a context on every device.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _restore(python: Any, numpy: Any, cpu: torch.Tensor, cuda: list[torch.Tensor]) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def _generators_of(loader: object) -> list[torch.Generator]:
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = {id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)}
    return list(found.values())
