"""A model as the loss sees it: in eval mode, on kernels that can be differentiated twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from thermoscope.model_state import in_eval_mode

__all__ = ["evaluating"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, on kernels that can be differentiated twice; as it was afterwards.

    Flash attention, cuDNN's and oneDNN's RNNs cannot. The fused weight norm is, but wrongly: its second
    derivative takes the norms for constants (torch 2.15).
    """
    with in_eval_mode(model), ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if any(isinstance(m, ParametrizationList) or hasattr(m, "weight_g") for m in model.modules()):
            stack.enter_context(_PlainWeightNorm())
        stack.enter_context(warnings.catch_warnings())
        # torch warns of itself when it first loads its forward derivatives.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation as v (g / ||v||), operation by operation."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function is torch._weight_norm:
            v, g, dim = (*arguments, *(keywords or {}).values(), 0)[:3]
            return v * (g / torch.norm_except_dim(v, 2, dim))
        return function(*arguments, **(keywords or {}))
