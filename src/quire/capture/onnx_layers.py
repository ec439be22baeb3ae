"""ONNX ops on torch: products, convolutions, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as nn

from quire.capture.onnx_table import DTYPES, Node, op
from quire.errors import CaptureError


@op("MatMul")
def matmul(n: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op("Gemm")
def gemm(n: Node, a: Tensor, b: Tensor, added: Tensor | None = None) -> Tensor:
    a = a.T if n.get("transA", 0) else a
    alpha, beta = n.get("alpha", 1.0), n.get("beta", 1.0)
    out = nn.linear(a, b) if n.get("transB", 0) else torch.matmul(a, b)
    out = out if alpha == 1 else out * alpha
    if added is None or beta == 0:
        return out
    return out + (added if beta == 1 else added * beta)


def _around(n: Node, sizes: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """What is added before and after each dim of space."""
    rank = len(kernel)
    by, wide = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
    how = n.get("auto_pad", "NOTSET")
    if how in ("NOTSET", "VALID"):
        pads = n.get("pads") or [0] * (2 * rank)
        return (
            [(0, 0)] * rank if how == "VALID" else list(zip(pads[:rank], pads[rank:], strict=True))
        )
    found = []
    for size, k, s, d in zip(sizes, kernel, by, wide, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if how == "SAME_UPPER" else (more, less))
    return found


def _flat(around: Sequence[tuple[int, int]]) -> list[int]:
    return [x for pair in reversed(around) for x in pair]


@op("Conv")
def conv(n: Node, x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    around = _around(n, x.shape[2:], w.shape[2:])
    even = [a for a, b in around if a == b]
    if len(even) < rank:
        x, even = nn.pad(x, _flat(around)), [0] * rank
    run: Any = (nn.conv1d, nn.conv2d, nn.conv3d)[rank - 1]
    ones = [1] * rank
    return run(
        x, w, bias, n.get("strides") or ones, even, n.get("dilations") or ones, n.get("group", 1)
    )


def _windows(n: Node, x: Tensor, fill: float) -> list[Tensor]:
    """The elements at each place of the pooling window, as tensors of the output's shape."""
    kernel = n.get("kernel_shape")
    rank = len(kernel)
    by, wide = n.get("strides") or [1] * rank, n.get("dilations") or [1] * rank
    around = [list(p) for p in _around(n, x.shape[2:], kernel)]
    outs = []
    for d in range(rank):
        reach = wide[d] * (kernel[d] - 1) + 1
        room = x.shape[2 + d] + sum(around[d]) - reach
        if n.get("ceil_mode", 0):
            out = -(-room // by[d]) + 1
            if (out - 1) * by[d] >= x.shape[2 + d] + around[d][0]:
                out -= 1
        else:
            out = room // by[d] + 1
        outs.append(out)
        around[d][1] = max(0, (out - 1) * by[d] + reach - x.shape[2 + d] - around[d][0])
    x = nn.pad(x, _flat([(a, b) for a, b in around]), value=fill)
    parts = [x]
    for d in range(rank):
        parts = [
            p.narrow(2 + d, k * wide[d], (outs[d] - 1) * by[d] + 1)[
                (slice(None),) * (2 + d) + (slice(None, None, by[d]),)
            ]
            for p in parts
            for k in range(kernel[d])
        ]
    return parts


@op("MaxPool")
def max_pool(n: Node, x: Tensor) -> Tensor:
    if n.outs > 1:
        raise CaptureError("MaxPool that gives indices")
    least = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    parts = _windows(n, x, least)
    out = parts[0]
    for p in parts[1:]:
        out = torch.maximum(out, p)
    return out


@op("AveragePool")
def average_pool(n: Node, x: Tensor) -> Tensor:
    total = torch.stack(_windows(n, x, 0.0)).sum(0)
    ones = torch.ones_like(x[:1, :1])
    if n.get("count_include_pad", 0):
        pads = n.get("pads")
        if pads or n.get("auto_pad", "NOTSET") != "NOTSET":
            around = _around(n, x.shape[2:], n.get("kernel_shape"))
            grown = nn.pad(ones, _flat(around), value=1.0)
            bare = Node(
                n.op,
                n.domain,
                n.version,
                n.name,
                {k: v for k, v in n.attributes.items() if k not in ("pads", "auto_pad")},
            )
            return total / torch.stack(_windows(bare, grown, 0.0)).sum(0)
    return total / torch.stack(_windows(n, ones, 0.0)).sum(0)


@op("GlobalAveragePool")
def global_average_pool(n: Node, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), True)


@op("GlobalMaxPool")
def global_max_pool(n: Node, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), True)


# --- norms ------------------------------------------------------------------------------------


@op("Softmax LogSoftmax Hardmax")
def softmax(n: Node, x: Tensor) -> Tensor:
    axis = n.get("axis", -1 if n.version >= 13 else 1)
    run = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax, "Hardmax": _hardmax}[n.op]
    if n.version >= 13:
        return run(x, axis)
    rows = x.reshape(math.prod(x.shape[: axis % x.ndim]), -1)
    return run(rows, -1).reshape(x.shape)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    axis %= x.ndim
    places = torch.arange(x.shape[axis]).reshape([-1 if d == axis else 1 for d in range(x.ndim)])
    return (x.argmax(axis, keepdim=True) == places).to(x.dtype)


@op("BatchNormalization")
def batch_norm(
    n: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    if n.get("training_mode", 0):
        raise CaptureError("BatchNormalization in training")
    return nn.batch_norm(x, mean, var, scale, bias, False, 0.0, n.get("epsilon", 1e-5))


@op("LayerNormalization")
def layer_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = n.get("axis", -1) % x.ndim
    dims, eps = list(range(axis, x.ndim)), n.get("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    mean = x.mean(dims, True)
    inverse = ((x - mean).square().mean(dims, True) + eps).rsqrt()
    scale = scale.expand(shape)
    out = nn.layer_norm(x, shape, scale, None if bias is None else bias.expand(shape), eps)
    return out, mean, inverse


@op("RMSNormalization SimplifiedLayerNormalization")
def rms_norm(n: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = n.get("axis", -1) % x.ndim
    shape = list(x.shape[axis:])
    return nn.rms_norm(x, shape, None, n.get("epsilon", 1e-5)) * scale


@op("GroupNormalization")
def group_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, eps = n.get("num_groups"), n.get("epsilon", 1e-5)
    if n.version >= 21:
        return nn.group_norm(x, groups, scale, bias, eps)
    each = x.shape[1] // groups
    return nn.group_norm(
        x, groups, scale.repeat_interleave(each), bias.repeat_interleave(each), eps
    )


@op("InstanceNormalization")
def instance_norm(n: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return nn.group_norm(x, x.shape[1], scale, bias, n.get("epsilon", 1e-5))


@op("LpNormalization")
def lp_norm(n: Node, x: Tensor) -> Tensor:
    axis = n.get("axis", -1)
    total = x.abs().sum(axis, True) if n.get("p", 2) == 1 else x.square().sum(axis, True).sqrt()
    return torch.where(total == 0, torch.zeros_like(x), x / total)


@op("MeanVarianceNormalization")
def mean_variance(n: Node, x: Tensor) -> Tensor:
    axes = n.get("axes") or [0, 2, 3]
    centred = x - x.mean(axes, True)
    return centred / (centred.square().mean(axes, True).sqrt() + 1e-9)


# --- attention --------------------------------------------------------------------------------


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[B, S, H·D] → [B, H, S, D]; what has four dims stays."""
    if x.ndim == 4:
        return x
    if count is None:
        raise CaptureError("attention over three dims without its number of heads")
    return x.unflatten(-1, (count, x.shape[-1] // count)).transpose(1, 2)


@op("Attention")
def attention(
    n: Node,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    live: Tensor | None = None,
) -> Any:
    flat, dtype = q.ndim == 3, q.dtype
    q = _heads(q, n.get("q_num_heads"))
    k, v = (_heads(x, n.get("kv_num_heads")) for x in (k, v))
    queries = q.shape[2]
    before: Any = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif live is not None:
        before = (live - queries).reshape(-1, 1, 1, 1)
    keys = k.shape[2]
    present = (k, v)
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scale = n.get("scale") or q.shape[-1] ** -0.5
    scores = torch.matmul(q, k.transpose(-1, -2)) * scale
    raw = scores
    if cap := n.get("softcap", 0.0):
        scores = torch.tanh(scores / cap) * cap
    modes = [raw, scores]
    allowed = _allowed(n, queries, keys, before, live)
    if mask is not None:
        short = keys - mask.shape[-1]
        if mask.dtype == torch.bool:
            mask = nn.pad(mask, (0, short), value=False) if short else mask
            allowed = mask if allowed is None else allowed & mask
        else:
            scores = scores + (nn.pad(mask, (0, short), value=-math.inf) if short else mask)
    if allowed is not None:
        scores = torch.where(allowed, scores, -math.inf)
    modes.append(scores)
    precision = DTYPES.get(n.get("softmax_precision"), torch.float32)
    dead = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.to(precision).softmax(-1).to(dtype)
    if mask is not None or allowed is not None:
        weights = torch.where(dead, 0.0, weights)
    modes.append(weights)
    out = torch.matmul(weights, v)
    out = out.transpose(1, 2).flatten(2) if flat else out
    return out, *present, modes[n.get("qk_matmul_output_mode", 0)].to(dtype)


def _allowed(n: Node, queries: Any, keys: Any, before: Any, live: Tensor | None) -> Tensor | None:
    """Which keys a query may see by position; None: all."""
    at = torch.arange(queries)[:, None] + before
    key = torch.arange(keys)[None]
    left, right = n.get("left_window_size", -1), n.get("right_window_size", -1)
    tests = []
    if n.get("is_causal", 0):
        tests.append(key <= at)
    if left >= 0:
        tests.append(at - key <= left)
    if right >= 0:
        tests.append(key - at <= right)
    if live is not None:
        tests.append(key < live.reshape(-1, 1, 1, 1))
    out = None
    for test in tests:
        out = test if out is None else out & test
    return out


@op("RotaryEmbedding")
def rotary(n: Node, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None) -> Tensor:
    shape = x.shape
    heads = x.transpose(1, 2) if x.ndim == 4 else x.unflatten(-1, (n.get("num_heads"), -1))
    width = n.get("rotary_embedding_dim", 0) or heads.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    if at is not None:
        cos, sin = nn.embedding(at, cos), nn.embedding(at, sin)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    if n.get("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2)
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
        turned = torch.cat([cos * a - sin * b, sin * a + cos * b], -1)
    out = torch.cat([turned, rest], -1) if width < heads.shape[-1] else turned
    return out.transpose(1, 2) if len(shape) == 4 else out.reshape(shape)
