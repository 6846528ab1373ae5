"""Models and devices by name."""

from __future__ import annotations

import torch
from torch import nn

from thermoscope.errors import AnalysisError

from .names import call, require_known, source_and_rest

__all__ = ["find_device", "load_model", "require_model"]

# Small models and pretrained ones of the papers; the two modules are their names in runs of version 0.1.0.
_PAPERS = ("paper", "analysis.models", "analysis.pretrained_models")


def find_device(name: str) -> torch.device:
    """A device by name.

    Raises:
        AnalysisError: if it is not there.
    """
    try:
        one = torch.zeros(1, device=name)
        one.item()  # "meta" has no values
        return one.device
    except (RuntimeError, AssertionError) as error:
        raise AnalysisError(f"there is no device {name!r} here; use --device cpu.") from error


def load_model(name: str, num_classes: int) -> nn.Module:
    """Build `torchvision:NAME`, `timm:NAME`, `paper:NAME` or `my.module:function`, with random weights.

    Raises:
        AnalysisError: for a name that does not exist; the message has the nearest ones.
    """
    source, rest = source_and_rest(name, "torchvision:resnet18, timm:vit_tiny_patch16_224 or my.module:build")
    require_model(name)
    model: nn.Module
    if source == "torchvision":
        import torchvision.models as zoo

        own_weights = {"init_weights": True} if rest in ("inception_v3", "googlenet") else {}
        model = zoo.get_model(rest, weights=None, num_classes=num_classes, **own_weights)
    elif source == "timm":
        import timm

        model = timm.create_model(rest, pretrained=False, num_classes=num_classes)
    else:
        module = "analysis.sources.paper_models" if source in _PAPERS else source
        model = call(module, rest, num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise AnalysisError(f"{name!r} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def require_model(name: str) -> None:
    """Refuse a name that torchvision, timm or the papers do not have.

    Raises:
        AnalysisError: with the nearest names.
    """
    source, _, rest = name.partition(":")
    if source == "torchvision":
        import torchvision.models as zoo

        require_known(rest, zoo.list_models(module=zoo), "torchvision has no model")
    elif source == "timm":
        import timm

        require_known(rest, timm.list_models(), "timm has no model")
    elif source in _PAPERS:
        from . import paper_models

        require_known(rest, paper_models.__all__, "of the papers' models none is called")
