"""Softmax and the norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.capture.program import Op, Operand
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Join, Part, Span, span
from quire.flow.rules.common import (
    aten,
    divide,
    make_axis,
    make_flow,
    mapped,
    nothing,
    numel,
    others,
    wrap,
)


@rule(*aten("softmax.int _softmax _safe_softmax"))
def softmax(op: Op) -> Flow:
    source: Operand = op["self"]
    dim = wrap(op["dim"], source.ndim)
    axes = mapped(op, others(source.ndim, dim), source)
    # A row that is masked whole is 0 in _safe_softmax: rescaling would make it NaN.
    if op.target not in aten("_safe_softmax") and source.ndim:
        reads, writes = {0: span(dim)}, {0: span(dim)}
        axes.append(make_axis(op, source.shape[dim], reads, writes, join=Join.SOFTMAX))
    return make_flow(op, axes, why="normalised over this dim", flops=5 * numel(op))


@rule(*aten("log_softmax.int _log_softmax"))
def log_softmax(op: Op) -> Flow:
    source: Operand = op["self"]
    axes = mapped(op, others(source.ndim, wrap(op["dim"], source.ndim)), source)
    return make_flow(op, axes, why="normalised over this dim", flops=5 * numel(op))


@rule(*aten("_softmax_backward_data _log_softmax_backward_data"))
def softmax_backward(op: Op) -> Flow:
    grad, output = op.operands[:2]
    dim = wrap(op["dim"], grad.ndim)
    axes = [
        make_axis(op, size, {grad.index: span(d), output.index: span(d)}, {0: span(d)})
        for d, size in enumerate(grad.shape)
        if d != dim
    ]
    return make_flow(op, axes, why="normalised over this dim", flops=4 * numel(op))


@rule(*aten("layer_norm rms_norm native_layer_norm _fused_rms_norm"))
def layer_norm(op: Op) -> Flow:
    """Leading dims split; weight and bias belong to the dims normalised over.

    The further outputs of the native forms (mean, reciprocal deviation) keep the leading dims.
    """
    source: Operand = op["input"]
    leading = range(source.ndim - len(op["normalized_shape"]))
    axes = mapped(op, {d: d for d in leading}, source)
    return make_flow(op, axes, why="normalised over this dim", flops=8 * numel(op))


@rule(*aten("group_norm"))
def group_norm(op: Op) -> Flow:
    source: Operand = op["input"]
    axes = mapped(op, {0: 0}, source)
    width = divide(source.shape[1], op["num_groups"])
    if width is not None:
        axes.append(groups_axis(op, width, "num_groups"))
    return make_flow(op, axes, why="normalised over this dim", flops=8 * numel(op))


def groups_axis(op: Op, width: Any, name: str) -> Axis:
    """The axis of whole groups of `width` channels; `name` is the argument with their number."""
    source: Operand = op["input"]
    channels = span(1, scale=width)
    reads: dict[int, Span] = {source.index: channels}
    for key in ("weight", "bias"):
        if op[key] is not None:
            reads[op[key].index] = span(0, scale=width)

    def edit(part: Part) -> Mapping[str, Any]:
        return {name: part.length} | ({"C": width * part.length} if "C" in op.arguments else {})

    writes = {0: channels} | {k: span(1) for k in range(1, len(op.outputs))}
    return make_axis(op, op[name], reads, writes, edit=edit)


@rule(*aten("native_group_norm"))
def native_group_norm(op: Op) -> Flow:
    source: Operand = op["input"]

    def edit(part: Part) -> Mapping[str, Any]:
        return {"N": part.length}

    axes = mapped(op, {0: 0}, source, edit=edit)
    width = divide(source.shape[1], op["group"])
    if width is not None:
        axes.append(groups_axis(op, width, "group"))
    return make_flow(op, axes, why="normalised over this dim", flops=8 * numel(op))


@rule(*aten("batch_norm _native_batch_norm_legit_no_training instance_norm"))
def batch_norm(op: Op) -> Flow:
    """With running statistics it scales and shifts each channel; else it needs the whole batch."""
    source: Operand = op["input"]
    name = op.target._schema.name.removeprefix("aten::")
    whole = False
    if name == "instance_norm":
        whole = op["use_input_stats"]
    elif name == "batch_norm":
        whole = op["training"] or op["running_mean"] is None
    if whole and op["running_mean"] is not None:
        return nothing(op, "it updates the running statistics")
    axes = []
    for dim, size in enumerate(source.shape):
        reads = {source.index: span(dim)}
        if dim == 1:
            reads |= {o.index: span(0) for o in op.operands[1:]}
        if not whole or dim == 1 or (dim == 0 and name == "instance_norm"):
            axes.append(make_axis(op, size, reads, {0: span(dim)}))
    return make_flow(op, axes, why="normalised over this dim", flops=2 * numel(op))


@rule(*aten("_weight_norm"))
def weight_norm(op: Op) -> Flow:
    """Each slice of `v` along `dim` is scaled to the length given by `g`."""
    v, g, dim = op["v"], op["g"], op["dim"]
    if dim == -1:
        return nothing(op, "one norm of the whole tensor")
    dim = wrap(dim, v.ndim)
    reads = {v.index: span(dim), g.index: span(dim)}
    axes = [make_axis(op, v.shape[dim], reads, {0: span(dim)})]
    return make_flow(op, axes, why="normalised over this dim", flops=3 * numel(op))
