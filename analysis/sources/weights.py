"""Weights from a file, as people save them, into a model."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from thermoscope.errors import AnalysisError

from .models import load_model, require_model

__all__ = ["load_checkpoint_of", "load_published", "load_weights", "read_weights"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.")  # of DDP and torch.compile


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name; nothing in the file is executed.

    Safetensors, or what `torch.save` wrote of a `state_dict` or of a dictionary with one in it. Prefixes
    that DDP and `torch.compile` put before all names are taken off.

    Raises:
        AnalysisError: for a file that is missing, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise AnalysisError(f"there is no checkpoint {str(path)!r}.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _saved_by_torch(path)
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise AnalysisError(
            f"{str(path)!r} holds no state_dict (its keys: {', '.join(map(str, list(content)[:5]))}); save "
            "model.state_dict()."
        )
    names = [str(name) for name in content]
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), ""):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, content.values(), strict=True))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a model, every weight of it.

    Raises:
        AnalysisError: as `read_weights`, and if it is one of another model.
    """
    _load(model, read_weights(path), path)


def load_checkpoint_of(name: str, path: str | Path, num_classes: int = 1000) -> nn.Module:
    """Build a model by name (see `load_model`) with a checkpoint's weights and number of classes.

    Args:
        name: torchvision:NAME, timm:NAME, paper:NAME or my.module:function.
        path: of the checkpoint.
        num_classes: for the model, if the checkpoint fits it; otherwise the checkpoint's own number.

    Raises:
        AnalysisError: as `load_model` and `load_weights`.
    """
    weights = read_weights(path)
    model = load_model(name, num_classes)
    own = model.state_dict()
    odd = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    found = {weights[n].shape[0] for n in odd if own[n].ndim and own[n].shape[0] == num_classes}
    if len(found) == 1:
        model = load_model(name, int(found.pop()))
    _load(model, weights, path)
    return model


def load_published(name: str) -> nn.Module:
    """Build `torchvision:NAME` or `timm:NAME` with the weights that are published with it.

    Raises:
        AnalysisError: if there are none, or if they cannot be fetched: then it says which file to bring.
    """
    source, _, rest = name.partition(":")
    if source not in ("torchvision", "timm"):
        raise AnalysisError(f"no weights are published with {name!r}; pass a file with --checkpoint FILE.")
    require_model(name)
    if source == "torchvision":
        from torchvision.models import get_model, get_model_weights

        published = list(get_model_weights(rest))
        file = Path(published[-1].url).name if published else None
        build = partial(get_model, rest, weights="DEFAULT")
    else:
        import timm

        config = timm.get_pretrained_cfg(rest)
        file = None
        if config is not None and config.has_weights:
            file = f"model.safetensors of {config.hf_hub_id or rest}"
        build = partial(timm.create_model, rest, pretrained=True)
    if file is None:
        raise AnalysisError(f"no weights are published with {name!r}; pass a file with --checkpoint FILE.")
    try:
        model: nn.Module = build()
    except Exception as error:  # the fetching libraries raise many kinds
        raise AnalysisError(
            f"the published weights of {name!r} cannot be fetched here; bring the file {file} and pass it "
            "with --checkpoint FILE."
        ) from error
    return model


def _load(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path) -> None:
    own = model.state_dict()
    for name in [*own, *weights]:
        here = tuple(own[name].shape) if name in own else "missing"
        there = tuple(weights[name].shape) if name in weights else "missing"
        if here != there and not (name not in weights and name.endswith("num_batches_tracked")):
            raise AnalysisError(
                f"{str(path)!r} is a checkpoint of another model: {name!r} is {there} there and {here} here."
            )
    for name, tensor in weights.items():
        if not _fits(tensor, own[name]):
            raise AnalysisError(
                f"{str(path)!r} is a checkpoint of another model: {name!r} is {_kind(tensor)} there, and "
                f"{_kind(own[name])} here cannot take it as it is."
            )
    model.load_state_dict(weights, strict=False)


def _fits(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a tensor of a checkpoint can be the model's: rounded, but not of another kind of number."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    if own.is_floating_point() or own.is_complex():
        kinds = [(one.is_floating_point(), one.is_complex()) for one in (own, tensor)]
        return kinds[0] == kinds[1]
    if tensor.is_quantized or tensor.is_complex():
        return False
    return bool(torch.equal(tensor.to(own.dtype).to(tensor.dtype), tensor))  # counters and masks: exactly


def _kind(tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return f"{dtype} without values"
    return dtype if tensor.layout == torch.strided else f"{dtype} {str(tensor.layout).removeprefix('torch.')}"


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise AnalysisError(
            f"{str(path)!r} is damaged; copy it again, or delete it to do without."
        ) from error


def _saved_by_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "is no checkpoint, or holds more than tensors, which could run code when loaded"
        raise AnalysisError(f"{str(path)!r} {reason}; save model.state_dict() alone.") from error
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise AnalysisError(
            f"{str(path)!r} is damaged; copy it again, or delete it to do without."
        ) from error
    if not isinstance(content, Mapping):
        raise AnalysisError(
            f"{str(path)!r} holds a {type(content).__name__}, no state_dict; save model.state_dict()."
        )
    return dict(content)


def _damaged(path: Path) -> AnalysisError:
    return AnalysisError(f"{str(path)!r} is damaged; copy it again, or delete it to do without.")
