"""Convolutions, plain and transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Edit, Flow, Join, Part, Span, span, window
from quire.flow.rules.common import (
    aten,
    divide,
    make_axis,
    make_flow,
    mapped,
    nothing,
    per_dim,
    product,
    replaced,
)
from quire.flow.rules.contraction import without_bias


@rule(
    *aten("""
    conv1d conv2d conv3d conv1d.padding conv2d.padding conv3d.padding convolution
    conv_transpose1d conv_transpose2d.input conv_transpose3d.input
""")
)
def convolution(op: Op) -> Flow:
    source, weight = op["input"], op["weight"]
    transposed = bool(op.get("transposed")) or "transpose" in op.target._schema.name
    spatial = weight.ndim - 2
    channel = source.ndim - spatial - 1
    if channel > 1:
        return nothing(op, "more than one batch dim")
    axes = mapped(op, {0: 0}, source) if channel == 1 else []
    axes += channel_axes(op, channel, transposed)
    flops = flops_of(op, transposed)
    if transposed:
        axes += spread_axes(op, channel, spatial)
        return make_flow(op, axes, why="places overlap where it is written", flops=flops)
    axes += spatial_axes(op, channel, spatial)
    return make_flow(op, axes, why="padded by name, in several dims", flops=flops)


def spread_axes(op: Op, channel: int, spatial: int) -> list[Axis]:
    """Dims of a transposed convolution in which each input pixel fills `stride` outputs alone."""
    source, weight = op["input"], op["weight"]
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, more, dilation = (per_dim(op[n], spatial) for n in names)
    axes: list[Axis] = []
    for i in range(spatial):
        dim = channel + 1 + i
        reach = dilation[i] * (weight.shape[2 + i] - 1) + 1
        if padding[i] == 0 and reach + more[i] == stride[i]:
            writes = {0: span(dim, scale=stride[i])}
            axes.append(make_axis(op, source.shape[dim], {source.index: span(dim)}, writes))
    return axes


def flops_of(op: Op, transposed: bool) -> Size:
    """Two for each output (of the transposed: input) element and weight of its filter."""
    source, weight = op["input"], op["weight"]
    return 2 * (source.info if transposed else op.out).numel * product(weight.shape[1:])


def channel_axes(op: Op, channel: int, transposed: bool) -> list[Axis]:
    """Groups, output channels within each group, and input channels, which are summed over."""
    source, weight = op["input"], op["weight"]
    bias: Operand | None = op["bias"]
    groups = op["groups"]
    width_in = divide(source.shape[channel], groups)
    width_out = divide(op.out.shape[channel], groups)
    if width_in is None or width_out is None:
        return []
    axes: list[Axis] = []

    def add(
        size: Size, read: Span | None, filters: Span, result: Span | None, edit: Edit | None
    ) -> None:
        reads = {weight.index: filters} | ({source.index: read} if read is not None else {})
        if result is None:
            init = None if bias is None else bias.index
            axes.append(make_axis(op, size, reads, {}, join=Join.SUM, init=init, edit=edit))
            return
        if bias is not None:
            reads[bias.index] = Span(0, scale=result.scale, outer=result.outer)
        axes.append(make_axis(op, size, reads, {0: result}, edit=edit))

    # The transposed op's weight has the input channels first.
    first = span(0, scale=width_in if transposed else width_out)
    if groups != 1:
        read, result = span(channel, scale=width_in), span(channel, scale=width_out)
        add(groups, read, first, result, fewer_groups)
    if width_out != 1:
        filters = span(1) if transposed else span(0, outer=groups)
        add(width_out, None, filters, span(channel, outer=groups), None)
    if width_in != 1:
        filters = span(0, outer=groups) if transposed else span(1)
        drop = None if bias is None else without_bias
        add(width_in, span(channel, outer=groups), filters, None, drop)
    return axes


def fewer_groups(part: Part) -> Mapping[str, Any]:
    return {"groups": part.length}


def spatial_axes(op: Op, channel: int, spatial: int) -> list[Axis]:
    source, weight = op["input"], op["weight"]
    strides = per_dim(op["stride"], spatial)
    dilations = per_dim(op["dilation"], spatial)
    named = isinstance(op["padding"], str)
    reach = [dilations[i] * (weight.shape[2 + i] - 1) + 1 for i in range(spatial)]
    if op["padding"] == "same":
        paddings = [(n - 1) // 2 for n in reach]
    else:
        paddings = [0] * spatial if named else per_dim(op["padding"], spatial)
    axes: list[Axis] = []
    for i in range(spatial):
        # `same` has to become `valid`, which is for all dims, but where it adds nothing.
        same = op["padding"] == "same" and reach[i] != 1
        if same and any(n != 1 for k, n in enumerate(reach) if k != i):
            continue
        dim = channel + 1 + i
        read = window(dim, strides[i], paddings[i], reach[i], fill=0.0)
        edit = None if named and not same else not_padded(i, spatial, named)
        size = op.out.shape[dim]
        axes.append(make_axis(op, size, {source.index: read}, {0: span(dim)}, edit=edit))
    return axes


def not_padded(at: int, spatial: int, named: bool) -> Edit:
    def edit(part: Part) -> Mapping[str, Any]:
        if named:
            return {"padding": "valid"}
        return {"padding": replaced(per_dim(part.op["padding"], spatial), at, 0)}

    return edit
