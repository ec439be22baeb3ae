"""Ops that read neighbours: pooling, padding, rolling, resizing, sliding windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Edit, Flow, Part, Span, span, window
from quire.flow.rules.common import (
    aten,
    divide,
    equal,
    make_axis,
    make_flow,
    mapped,
    nothing,
    numel,
    others,
    per_dim,
    replaced,
    wrap,
    wraps,
)


@rule(
    *aten("""
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices
    max_pool1d_with_indices max_pool3d_with_indices
""")
)
def pool(op: Op) -> Flow:
    source: Operand = op["self"]
    name = op.target._schema.name.removeprefix("aten::")
    count = int(name[8])
    first = source.ndim - count
    axes = mapped(op, {d: d for d in range(first)}, source)
    kernels = per_dim(op["kernel_size"], count)
    flops = numel(op) * math.prod(kernels)
    if len(op.outputs) > 1:
        return make_flow(op, axes, why="indices count from the plane's first pixel", flops=flops)
    strides = per_dim(op["stride"] or kernels, count)
    paddings = per_dim(op["padding"], count)
    dilations = per_dim(op.get("dilation", 1), count)
    fill = 0.0 if name.startswith("avg") else -math.inf
    reasons: dict[int, str] = {}
    for i in range(count):
        dim = first + i
        reach = dilations[i] * (kernels[i] - 1) + 1
        room = source.shape[dim] + 2 * paddings[i]
        if paddings[i] and not op.get("count_include_pad", True):
            reasons[dim] = "padding is not counted"
        elif fill and paddings[i] and not source.info.dtype.is_floating_point:
            reasons[dim] = "integers have no −∞ to pad with"
        elif op["ceil_mode"] and divide(room - reach, strides[i]) is None:
            reasons[dim] = "the last window reaches beyond the padding"
        else:
            read = window(dim, strides[i], paddings[i], reach, fill=fill)
            edit = not_padded("padding", i, count)
            size = op.out.shape[dim]
            axes.append(make_axis(op, size, {source.index: read}, {0: span(dim)}, edit=edit))
    return make_flow(op, axes, reasons=reasons, flops=flops)


def not_padded(name: str, at: int, count: int) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        return {name: replaced(per_dim(part.op[name], count), at, 0)}

    return edit


@rule(
    *aten("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
""")
)
def adaptive_pool(op: Op) -> Flow:
    """Each output averages as many inputs as any other only if the sizes divide."""
    source: Operand = op["self"]
    count = len(op["output_size"])
    first = source.ndim - count
    axes = mapped(op, {d: d for d in range(first)}, source)
    for dim in range(first, source.ndim):
        ratio = divide(source.shape[dim], op.out.shape[dim])
        if ratio is not None and len(op.outputs) == 1:
            reads = {source.index: span(dim, scale=ratio)}
            edit = resized(first)
            axes.append(make_axis(op, op.out.shape[dim], reads, {0: span(dim)}, edit=edit))
    why = "windows of different size" if len(op.outputs) == 1 else "indices are of the whole plane"
    return make_flow(op, axes, why=why, flops=source.info.numel)


def resized(first: int) -> Edit:
    """`output_size` for the spatial dims, which start at `first`."""

    def edit(part: Part) -> Mapping[str, Any]:
        if part.op["output_size"] is None:
            return {}
        return {"output_size": list(part.shapes[0][first:])}

    return edit


@rule(*aten("pad constant_pad_nd"))
def pad(op: Op) -> Flow:
    source: Operand = op["self"]
    if op.get("mode", "constant") != "constant":
        return mirrored(op, source, op["pad"])
    value = op["value"] or 0
    axes: list[Axis] = []
    for dim, size in enumerate(op.out.shape):
        at = 2 * (source.ndim - 1 - dim)
        left, right = op["pad"][at : at + 2] or (0, 0)
        if left == 0 and right == 0:
            axes.append(make_axis(op, size, {0: span(dim)}, {0: span(dim)}))
            continue
        read = Span(dim, lo=-left, hi=-left, fill=value)
        axes.append(make_axis(op, size, {0: read}, {0: span(dim)}, edit=less_padding(at)))
    return make_flow(op, axes)


def less_padding(at: int) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        return {"pad": [0 if i in (at, at + 1) else n for i, n in enumerate(part.op["pad"])]}

    return edit


@rule(
    *aten("""
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d
""")
)
def other_pad(op: Op) -> Flow:
    return mirrored(op, op["self"], op["padding"])


def mirrored(op: Op, source: Operand, pads: list[Any]) -> Flow:
    """Padding taken from the tensor itself: only dims that are not padded split."""
    padded = {source.ndim - 1 - i // 2 for i, n in enumerate(pads) if n != 0}
    axes = mapped(op, others(source.ndim, *padded), source)
    return make_flow(op, axes, why="padded with its own elements")


@rule(*aten("roll"))
def roll(op: Op) -> Flow:
    source: Operand = op["self"]
    if not op["dims"]:
        return nothing(op, "it rolls over all dims as one")
    dims = wraps(op["dims"], source.ndim)
    moved = {
        d
        for d, shift in zip(dims, per_dim(op["shifts"], 1), strict=True)
        if not equal(shift, 0) and not equal(shift, source.shape[d])
    }
    return make_flow(op, mapped(op, others(source.ndim, *moved), source), why="rolled")


@rule(
    *aten("""
    upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec
    upsample_nearest3d upsample_nearest3d.vec
""")
)
def upsample_nearest(op: Op) -> Flow:
    """Each pixel is repeated, if the factor is a whole number."""
    source = op.operands[0]
    axes = mapped(op, {0: 0, 1: 1}, source)
    for dim in range(2, source.ndim):
        size = source.shape[dim]
        factor = divide(op.out.shape[dim], size)
        if factor is not None and repeats(op, dim, size, factor):
            writes = {0: span(dim, scale=factor)}
            axes.append(make_axis(op, size, {0: span(dim)}, writes, edit=resized(2)))
    return make_flow(op, axes, why="not a whole number of copies")


def repeats(op: Op, dim: int, size: Size, factor: Size) -> bool:
    """Whether torch's float32 arithmetic gives pixel j to outputs j·factor … (j+1)·factor."""
    names = ("scales", "scales_d", "scales_h", "scales_w")
    scales = [op[n] for n in names if n in op.arguments] or op.get("scale_factors")
    if scales and scales[dim - 2] is not None and scales[dim - 2] != factor:
        return False
    if not isinstance(factor, int) or factor < 1:
        return False
    if factor & (factor - 1) == 0:
        return True
    if not isinstance(size, int):
        return False
    places = np.arange(size * factor)
    step = np.float32(1) / np.float32(factor)
    return bool(np.all(np.floor(places.astype(np.float32) * step) == places // factor))


@rule(
    *aten("""
    upsample_linear1d upsample_linear1d.vec upsample_bilinear2d upsample_bilinear2d.vec
    upsample_bicubic2d upsample_bicubic2d.vec upsample_trilinear3d upsample_trilinear3d.vec
    _upsample_bilinear2d_aa _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa.vec
""")
)
def upsample_smooth(op: Op) -> Flow:
    axes = mapped(op, {0: 0, 1: 1}, op.operands[0])
    return make_flow(op, axes, why="weights depend on the place", flops=8 * numel(op))


@rule(*aten("channel_shuffle im2col col2im"))
def shuffle(op: Op) -> Flow:
    source: Operand = op["self"]
    name = op.target._schema.name.removeprefix("aten::")
    ranks = {"im2col": 3, "col2im": 2, "channel_shuffle": source.ndim - 1}
    leading = range(source.ndim - ranks[name])
    axes = mapped(op, {d: d for d in leading}, source)
    if name == "channel_shuffle":
        axes += mapped(op, {d: d for d in range(2, source.ndim)}, source)
    return make_flow(op, axes, why="channels and pixels trade places")


@rule(*aten("pixel_shuffle pixel_unshuffle"))
def pixel_shuffle(op: Op) -> Flow:
    """r² channels of a pixel become the r × r pixels of one channel, or back."""
    source: Operand = op["self"]
    channel = source.ndim - 3
    if source.info.numel == 0:
        return nothing(op, "without elements torch gives the operand itself")
    axes = mapped(op, {d: d for d in range(channel)}, source)
    factor = op.get("upscale_factor") or op["downscale_factor"]
    for dim in range(channel, source.ndim):
        many = span(dim, scale=factor * factor if dim == channel else factor)
        # The side with more of this dim: shuffling makes pixels, unshuffling channels.
        widens = (dim != channel) == ("upscale_factor" in op.arguments)
        read, write = (span(dim), many) if widens else (many, span(dim))
        size = source.shape[dim] if widens else op.out.shape[dim]
        axes.append(make_axis(op, size, {0: read}, {0: write}))
    return make_flow(op, axes)


@rule(*aten("unfold unfold_copy"))
def unfold(op: Op) -> Flow:
    """out[…, i, …, j] reads in[step·i + j]."""
    source: Operand = op["self"]
    dim = wrap(op["dimension"], source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    if source.ndim:
        reads = {0: window(dim, op["step"], 0, op["size"])}
        axes.append(make_axis(op, op.out.shape[dim], reads, {0: span(dim)}))
    return make_flow(op, axes)
