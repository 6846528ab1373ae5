"""What torch's functions do to the axes of their arguments: one rule for each, by name.

A rule has the parameters of its function, with a `Dims` in place of every tensor, after the shape of the
first result. It gives the axes of every result, or a list with those of each. A call that a rule cannot read
gives no evidence, and neither does a function without a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch

from .axes import Axes, Axis, Strength, merged, new_axes, regrouped

__all__ = ["Dims", "Rule", "attended", "dims_in", "rule_of"]


class Dims(NamedTuple):
    """A tensor argument: its axes, their sizes, and whether it is a parameter."""

    axes: Axes
    shape: tuple[int, ...]
    is_parameter: bool = False


Shape: TypeAlias = "tuple[int, ...]"
Rule: TypeAlias = Callable[..., "Axes | list[Axes]"]
_RULES: dict[str, Rule] = {}


def rule_of(name: str) -> Rule | None:
    """The rule for a function's name, without underscores before and behind it."""
    return _RULES.get(name) or (_aligned if _is_pointwise(name) else None)


def _for(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


# -- number by number -------------------------------------------------------------------------------


@cache
def _is_pointwise(name: str) -> bool:
    """Whether torch itself says so of some variant."""
    packet = getattr(torch.ops.aten, name, None)
    variants = () if packet is None else (getattr(packet, variant) for variant in packet.overloads())
    return any(torch.Tag.pointwise in variant.tags for variant in variants)


# Operators that have other names than their functions.
@_for("rdiv", "rtruediv", "rpow", "floordiv", "rfloordiv", "mod", "rmod", "and", "or", "xor", "iadd", "isub",
      "imul", "idiv", "itruediv", "ipow", "ifloordiv")  # fmt: skip
def _aligned(out: Shape, *args: Any, **kwargs: Any) -> Axes:
    return _broadcast(out, *dims_in([args, list(kwargs.values())]))


def _broadcast(out: Shape, *given: Dims) -> Axes:
    """Dimensions of one size are united; a size of 1 proves nothing."""
    axes: list[Axis] = []
    for k in range(1, len(out) + 1):
        here = [dims for dims in given if len(dims.shape) >= k]
        whole = [dims.axes[-k] for dims in here if dims.shape[-k] == out[-k] != 1]
        for other in whole[1:]:
            whole[0].unite(other)
        axes.insert(0, (whole or [dims.axes[-k] for dims in here] or [Axis()])[0])
    return tuple(axes)


def dims_in(value: Any) -> Iterator[Dims]:
    """The tensors in a nest of arguments."""
    if isinstance(value, Dims):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from dims_in(item)


@_for("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "native_dropout",
      "feature_alpha_dropout", "softmax", "log_softmax", "softmin", "gumbel_softmax", "normalize", "relu",
      "relu6", "hardtanh", "selu", "celu", "elu", "leaky_relu", "rrelu", "threshold", "softsign",
      "tanhshrink", "hardshrink", "softshrink", "logsigmoid", "hardswish", "hardsigmoid", "silu", "mish",
      "softplus",
      "contiguous", "clone", "detach", "data", "real", "imag", "to", "float", "half", "bfloat16", "double",
      "type", "type_as", "cuda", "cpu", "requires_grad", "fill", "zero", "copy", "bernoulli", "normal",
      "uniform", "roll", "flip", "cumsum", "cumprod", "sort", "gather", "glu", "pad", "interpolate",
      "upsample", "topk", "index_select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split",
      "unsafe_chunk", "unsafe_split", "repeat_interleave", "local_response_norm", "channel_shuffle",
      "zeros_like", "ones_like", "rand_like", "randn_like", "empty_like", "full_like")  # fmt: skip
def _same(out: Shape, x: Dims, *_: Any, **__: Any) -> Axes:
    """All dimensions stay where they are, whatever their sizes."""
    return x.axes


# -- layers that know what their dimensions are -----------------------------------------------------


def _claim(axes: Sequence[Axis], kind: Any, strength: Strength) -> None:
    for axis in axes:
        axis.claim(kind, strength)


def _claim_shared(axes: Axes) -> None:
    """Places at which the same weights are applied: the first dimension too, if examples are elsewhere."""
    for i, axis in enumerate(axes):
        if i or axis.root.parts or any(other.kind == "B" for other in axes[1:]):
            axis.claim("P", Strength.SHARED)


def _made(strength: Strength) -> Axis:
    """New channels."""
    axis = Axis()
    axis.claim("C", strength)
    return axis


@_for("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(out: Shape, input: Dims, weight: Dims, *_: Any, **__: Any) -> Axes:
    channel = len(input.axes) - (len(weight.shape) - 2) - 1
    _claim(input.axes[channel : channel + 1], "C", Strength.SURE)
    _claim(input.axes[channel + 1 :], "P", Strength.SURE)
    return (*input.axes[:channel], _made(Strength.SURE), *input.axes[channel + 1 :])


@_for("batch_norm", "instance_norm", "group_norm")
def _channel_norm(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    _claim(input.axes[1:2], "C", Strength.SURE)
    _claim(input.axes[2:], "P", Strength.MADE)
    return input.axes


@_for("prelu")
def _prelu(out: Shape, input: Dims, weight: Dims) -> Axes:
    if weight.shape != (1,):
        _claim(input.axes[1:2], "C", Strength.SURE)
    return input.axes


@_for("layer_norm", "rms_norm")
def _last_norm(out: Shape, input: Dims, normalized_shape: Sequence[int], *_: Any, **__: Any) -> Axes:
    if len(normalized_shape) == 1:
        _claim(input.axes[-1:], "C", Strength.SURE)
        _claim_shared(input.axes[:-1])
    return input.axes


@_for("linear", "bilinear")
def _linear(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    """What it reads are channels unless they are known to be positions, as in the token half of a mixer."""
    _claim(input.axes[-1:], "C", Strength.SHARED)
    _claim_shared(input.axes[:-1])
    return (*input.axes[:-1], _made(Strength.MADE))


@_for("embedding")
def _embedding(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    _claim(input.axes[1:], "P", Strength.SHARED)
    return (*input.axes, _made(Strength.SURE))


@_for("embedding_bag")
def _embedding_bag(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    return (input.axes[0] if len(input.axes) == 2 else Axis(), _made(Strength.SURE))


@_for("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(out: Shape, input: Dims, *args: Any) -> list[Axes]:
    """Called with (input, hidden, weights, has_biases, ..., batch_first), or (data, sizes, ...)."""
    channel = _made(Strength.SURE)
    _claim(input.axes[-1:], "C", Strength.SURE)
    if isinstance(args[2], bool):
        _, batch = _time_and_batch(input.axes, batch_first=args[-1])
        hidden = (channel, batch, channel)  # layers and their channels, as one
    else:
        hidden = (channel, Axis(), channel)
    return [(*input.axes[:-1], channel), hidden, hidden]


def _time_and_batch(axes: Axes, *, batch_first: bool) -> tuple[Axis, Axis]:
    """Of (B, T, ...) or (T, B, ...). A batch that comes first may be of windows; it says nothing."""
    time, batch = (axes[1], axes[0]) if batch_first else axes[:2]
    time.claim("P", Strength.SURE)
    if not batch_first and not batch.root.parts:
        batch.claim("B", Strength.SURE)
    return time, batch


@_for("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(out: Shape, input: Dims, *_: Any) -> Axes:
    _claim(input.axes[-1:], "C", Strength.SURE)
    return (*input.axes[:-1], _made(Strength.SURE))


@_for("pack_padded_sequence")
def _pack(out: Shape, input: Dims, lengths: Any, batch_first: bool) -> list[Axes]:
    time, batch = _time_and_batch(input.axes, batch_first=batch_first)
    return [(Axis([(time, 0), (batch, 0)]), *input.axes[2:]), new_axes(1)]


@_for("pad_packed_sequence")
def _unpack(out: Shape, data: Dims, sizes: Any, batch_first: bool, *_: Any) -> list[Axes]:
    parts = data.axes[0].root.parts
    time, batch = (parts[0][0], parts[1][0]) if len(parts) == 2 else new_axes(2)
    first = (batch, time) if batch_first else (time, batch)
    time, batch = _time_and_batch(first, batch_first=batch_first)
    return [(*first, *data.axes[1:]), new_axes(1)]


@_for("multi_head_attention_forward")
def _attention(out: Shape, query: Dims, key: Dims, *_: Any, **__: Any) -> list[Axes]:
    return attended(query.axes, key.axes, batch_first=False)


def attended(query: Axes, key: Axes, *, batch_first: bool) -> list[Axes]:
    """Output and weights of attention of (B, T, C), (T, B, C) or (T, C)."""
    for axes in (query, key):
        _claim(axes[-1:], "C", Strength.SURE)
        if len(axes) == 3:
            _time_and_batch(axes, batch_first=batch_first)
        _claim(axes[: len(axes) == 2], "P", Strength.SURE)
    time = 1 if batch_first else 0
    weights = (query[1 - time], query[time], key[time]) if len(query) == 3 else (query[0], key[0])
    return [(*query[:-1], _made(Strength.SURE)), weights]


@_for("scaled_dot_product_attention")
def _dot_product_attention(out: Shape, query: Dims, key: Dims, value: Dims, *_: Any, **__: Any) -> Axes:
    _broadcast(out[:-2], *(Dims(dims.axes[:-2], dims.shape[:-2]) for dims in (query, key, value)))
    query.axes[-1].unite(key.axes[-1])
    key.axes[-2].unite(value.axes[-2])
    return (*query.axes[:-1], value.axes[-1])


@_for("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
      "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
      "adaptive_max_pool2d",
      "adaptive_max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
      "lp_pool1d", "lp_pool2d", "lp_pool3d", "pixel_shuffle", "pixel_unshuffle")  # fmt: skip
def _pooled(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    _claim(input.axes[2:], "P", Strength.SHARED)
    return input.axes


@_for("grid_sample")
def _grid_sample(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    return input.axes


# -- products ---------------------------------------------------------------------------------------


@_for("matmul", "bmm", "mm")
def _product(out: Shape, a: Dims, b: Dims, **_: Any) -> Axes:
    if b.is_parameter and len(b.axes) == 2:
        return _linear(out, a)  # type: ignore[return-value]
    if len(a.axes) < 2 or len(b.axes) < 2:
        return a.axes[:-1] if len(b.axes) < 2 else (*b.axes[:-2], b.axes[-1])
    a.axes[-1].unite(b.axes[-2])
    batch = _broadcast(out[:-2], *(Dims(dims.axes[:-2], dims.shape[:-2]) for dims in (a, b)))
    return (*batch, a.axes[-2], b.axes[-1])


@_for("rmatmul")
def _reflected_product(out: Shape, b: Dims, a: Dims) -> Axes:
    return _product(out, a, b)  # type: ignore[return-value]


@_for("addmm", "addbmm", "baddbmm")
def _added_product(out: Shape, bias: Dims, a: Dims, b: Dims, **_: Any) -> Axes:
    return _product(out, a, b)  # type: ignore[return-value]


@_for("einsum")
def _einsum(out: Shape, equation: str, *operands: Any) -> Axes:
    terms, arrow, result = equation.replace(" ", "").partition("->")
    known: dict[str, Axis] = {}
    for term, dims in zip(terms.split(","), dims_in(operands), strict=True):
        for letter, axis, size in zip(term, dims.axes, dims.shape, strict=True):
            if size > 1:
                known.setdefault(letter, axis).unite(axis)
    return tuple(known.get(letter) or Axis() for letter in result) if arrow else new_axes(len(out))


# -- dimensions moved -------------------------------------------------------------------------------


def _ints(given: Sequence[Any]) -> list[int]:
    """`(0, 2, 1)` or `((0, 2, 1),)`."""
    return list(given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given)


@_for("permute")
def _permute(out: Shape, x: Dims, *dims: Any, **kwargs: Any) -> Axes:
    return tuple(x.axes[dim] for dim in _ints(dims or (kwargs["dims"],)))


@_for("transpose", "swapaxes", "swapdims")
def _transpose(out: Shape, x: Dims, *dims: int, **kwargs: int) -> Axes:
    a, b = (*dims, *kwargs.values())
    axes = list(x.axes)
    axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


@_for("T", "t", "H", "numpy_T")
def _reversed(out: Shape, x: Dims) -> Axes:
    return x.axes[::-1]


@_for("mT", "mH", "adjoint")
def _matrix_transpose(out: Shape, x: Dims) -> Axes:
    return (*x.axes[:-2], x.axes[-1], x.axes[-2])


@_for("movedim", "moveaxis")
def _movedim(out: Shape, x: Dims, source: Any, destination: Any) -> Axes:
    rank = len(x.axes)
    sources, targets = ([d % rank for d in _ints((dims,))] for dims in (source, destination))
    order = [i for i in range(rank) if i not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        order.insert(target, origin)
    return tuple(x.axes[i] for i in order)


# -- dimensions split, merged, added and left out ---------------------------------------------------


@_for("view", "reshape", "view_as", "reshape_as", "unsafe_view")
def _reshape(out: Shape, x: Dims, *shape: Any, **_: Any) -> Axes:
    if shape and isinstance(shape[0], torch.dtype):
        return x.axes
    return regrouped(x.axes, x.shape, out)


@_for("flatten", "ravel")
def _flatten(out: Shape, x: Dims, start_dim: int = 0, end_dim: int = -1) -> Axes:
    rank = len(x.axes)
    start, end = start_dim % rank, end_dim % rank + 1
    inner = list(zip(x.axes[start:end], x.shape[start:end], strict=True))
    return (*x.axes[:start], merged(inner), *x.axes[end:])


@_for("unflatten")
def _unflatten(out: Shape, x: Dims, dim: int, sizes: Any) -> Axes:
    dim %= len(x.axes)
    count = len(out) - len(x.axes) + 1
    inner = regrouped(x.axes[dim : dim + 1], x.shape[dim : dim + 1], out[dim : dim + count])
    return (*x.axes[:dim], *inner, *x.axes[dim + 1 :])


@_for("squeeze")
def _squeeze(out: Shape, x: Dims, dim: Any = None) -> Axes:
    given = (
        range(len(x.axes)) if dim is None else _ints((dim,) if isinstance(dim, (tuple, list)) else ((dim,),))
    )
    gone = {d % len(x.axes) for d in given if x.shape[d] == 1}
    return tuple(axis for i, axis in enumerate(x.axes) if i not in gone)


@_for("unsqueeze")
def _unsqueeze(out: Shape, x: Dims, dim: int) -> Axes:
    axes = list(x.axes)
    axes.insert(dim % len(out), Axis())
    return tuple(axes)


@_for("expand", "expand_as", "broadcast_to", "repeat", "tile")
def _expand(out: Shape, x: Dims, *_: Any, **__: Any) -> Axes:
    """What had a size of 1 and has another is a new dimension."""
    added = len(out) - len(x.axes)
    kept = (
        axis if before == after or before != 1 else Axis()
        for axis, before, after in zip(x.axes, x.shape, out[added:], strict=True)
    )
    return (*new_axes(added), *kept)


@_for("cat", "concat", "concatenate")
def _cat(out: Shape, tensors: Any, *_: Any, **__: Any) -> Axes:
    first, *others = (dims for dims in dims_in(tensors) if len(dims.axes) == len(out))
    for dims in others:
        for axis, other in zip(first.axes, dims.axes, strict=True):
            axis.unite(other)
    return first.axes


@_for("stack")
def _stack(out: Shape, tensors: Any, dim: int = 0) -> Axes:
    first = next(dims_in(tensors))
    for dims in dims_in(tensors):
        for axis, other in zip(first.axes, dims.axes, strict=True):
            axis.unite(other)
    return _unsqueeze(out, first, dim)  # type: ignore[return-value]


@_for("select", "unbind")
def _select(out: Shape, x: Dims, dim: int = 0, index: Any = None) -> Axes:
    dim %= len(x.axes)
    return (*x.axes[:dim], *x.axes[dim + 1 :])


@_for("getitem")
def _getitem(out: Shape, x: Dims, index: Any) -> Axes:
    given = index if isinstance(index, tuple) else (index,)
    used = sum(0 if item is None or item is Ellipsis else 1 for item in given)
    if Ellipsis not in [item for item in given if not isinstance(item, Dims)]:
        given = (*given, Ellipsis)
    axes: list[Axis] = []
    i = tensors = 0
    for item in given:
        if item is Ellipsis:
            axes += x.axes[i : i + len(x.axes) - used]
            i += len(x.axes) - used
        elif item is None:
            axes.append(Axis())
        else:
            if isinstance(item, slice):
                axes.append(x.axes[i])
            elif not isinstance(item, int):
                tensors += 1
                axes.append(x.axes[i])
                if len(item.shape if isinstance(item, Dims) else torch.as_tensor(item).shape) != 1:
                    return new_axes(len(out))
            i += 1
    return tuple(axes) if tensors < 2 else new_axes(len(out))


@_for("mean", "sum", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "nanmean", "nansum",
      "median", "argmax", "any", "all", "count_nonzero", "std_mean", "var_mean", "mode")  # fmt: skip
def _reduced(out: Shape, x: Dims, dim: Any = None, *args: Any, **kwargs: Any) -> Axes:
    if isinstance(dim, Dims):
        return _broadcast(out, x, dim)
    return _without(out, x, dim if dim is not None else kwargs.get("axis"))


@_for("norm", "vector_norm")
def _norm(out: Shape, x: Dims, p: Any = 2, dim: Any = None, *_: Any, **__: Any) -> Axes:
    return _without(out, x, dim)


def _without(out: Shape, x: Dims, dim: Any) -> Axes:
    """Reduced dimensions are gone, or have size 1. Without `dim` all are, and a number has no axes."""
    if len(out) == len(x.axes):
        return x.axes
    gone = {d % len(x.axes) for d in (dim if isinstance(dim, (tuple, list)) else (dim,))}
    return tuple(axis for i, axis in enumerate(x.axes) if i not in gone)


@_for("unfold")
def _unfold(out: Shape, x: Dims, dimension: Any, *_: Any, **__: Any) -> Axes:
    """`Tensor.unfold` adds windows of one dimension; `F.unfold` gives (B, C * window, L)."""
    if len(out) == len(x.axes) + 1:
        return (*x.axes, x.axes[dimension])
    _claim(x.axes[-3:-2], "C", Strength.SURE)
    place, window = Axis(), dimension if isinstance(dimension, (tuple, list)) else (dimension, dimension)
    _claim([place, *x.axes[-2:]], "P", Strength.SURE)
    return (*x.axes[:-3], Axis(list(zip(x.axes[-3:], (x.shape[-3], *window), strict=True))), place)


@_for("fold")
def _fold(out: Shape, input: Dims, *_: Any, **__: Any) -> Axes:
    places, parts = new_axes(2), input.axes[-2].root.parts
    _claim(places, "P", Strength.SURE)
    return (*input.axes[:-2], parts[0][0] if len(parts) == 3 else _made(Strength.SURE), *places)
