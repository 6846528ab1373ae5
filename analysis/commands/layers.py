"""`thermoscope layers`."""

from __future__ import annotations

import argparse
from typing import Any

from thermoscope.errors import AnalysisError, reason

__all__ = ["add"]


def add(commands: Any) -> None:
    """Declare the command."""
    text = "list the places in a model where probes can be attached"
    parser = commands.add_parser(
        "layers",
        help=text,
        description=text + ", in execution order, "
        "with their layouts (B examples, C channels, T, L, H, W, D or P positions, ? unknown) and shapes",
    )
    parser.add_argument(
        "--model", required=True, help="torchvision:NAME, timm:NAME, paper:NAME or my.module:function"
    )
    parser.add_argument(
        "--input", default="3x224x224", metavar="CxHxW", help="size of an image (default: %(default)s)"
    )
    parser.set_defaults(run_command=_layers)


def _layers(options: argparse.Namespace) -> int:
    import torch

    from probes import hook_points

    from ..sources.models import load_model

    shape = [int(n) for n in options.input.split("x") if n.isascii() and n.isdigit()]
    if len(shape) != options.input.count("x") + 1:
        raise AnalysisError(f"--input {options.input!r} is no shape; write it as 3x224x224.")
    model = load_model(options.model, num_classes=10).eval()
    x = torch.zeros(2, *shape)
    try:
        points = hook_points(model, lambda m: m(x))
    except (RuntimeError, AssertionError, LookupError, TypeError, ValueError) as error:
        why = reason(error) or type(error).__name__
        raise AnalysisError(f"the model cannot take inputs of shape {options.input}: {why}") from error
    width = max(len(point.name) for point, _ in points)
    for point, features in points:
        print(f"{point.name:<{width}}  {point.type:<24} {point.layout:<7} {'x'.join(map(str, features))}")
    return 0
