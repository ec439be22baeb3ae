"""How long an op takes: a roofline with page faults and the overhead of calls."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from quire.capture.program import Op
from quire.cost.machine import Machine
from quire.cost.rates import LONGEST
from quire.flow.relation import Flow, Join

Kind = Literal[
    "gemm",
    "attention",
    "conv",
    "pointwise",
    "transcendental",
    "reduce",
    "copy",
    "view",
]


class Work(NamedTuple):
    """What a number of equal calls of one op do, all calls together.

    `flops` count multiply and add apart, the others are bytes: those read, those written and
    those of them in pages never touched before. `rows` is the M of a GEMM, or the number of
    query rows of an attention, in one call.
    """

    kind: Kind
    flops: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    fresh_bytes: float = 0.0
    calls: int = 1
    rows: int = LONGEST
    dtype: torch.dtype = torch.float32


PACKING = 2.0
"""A GEMM copies its operands into packed blocks before it computes: traffic that does not overlap.
Fitted to 45 shapes (16 … 4096 rows, 64 … 5632 wide): within 10 % for all but the smallest."""


def op_seconds(work: Work, machine: Machine) -> float:
    """Predicted seconds of `work`: the slower of arithmetic and traffic (for a GEMM both), plus
    faults and calls.

    Traffic is at cache speed where the data of one call fit the last cache, at memory speed where
    they are twice its size, and in between shared out. The roofline model is that of Williams,
    Waterman and Patterson, CACM 52(4), 2009.
    """
    kind, flops, read, written, fresh, calls, rows, dtype = work
    rates = machine.rates
    overhead = rates.overhead[kind] * calls
    if kind == "view":
        return overhead
    moved = read + written
    each = moved / calls if calls > 1 else moved
    if each <= rates.cache_bytes:
        seconds = moved * rates.cache
    else:
        seconds = read * rates.read + written * rates.write
        if each < 2 * rates.cache_bytes:
            share = 2 - each / rates.cache_bytes
            seconds += share * (moved * rates.cache - seconds)
    if kind == "gemm":
        compute = flops * _per_flop(rates.gemm, rows, dtype)
    elif kind == "attention":
        compute = flops * _per_flop(rates.attention, rows, dtype)
    elif kind == "conv":
        compute = flops * rates.conv
    elif kind == "transcendental":
        # The functions count by the element: their FLOPs are anyone's guess.
        compute = written / dtype.itemsize * rates.transcendental
    elif kind == "reduce":
        compute = flops * rates.reduce
    else:
        compute = 0.0
    if kind == "gemm":
        busy = compute + PACKING * seconds
    else:
        busy = compute if compute > seconds else seconds
    return busy + fresh * rates.fault + overhead


def _per_flop(table: dict[torch.dtype, list[float]], rows: int, dtype: torch.dtype) -> float:
    # Integers have no fast GEMM: eight times the float's time is the order of magnitude.
    figures = table.get(dtype)
    if figures is None:
        return 8 * table[torch.float32][rows if rows < LONGEST else LONGEST]
    return figures[rows if rows < LONGEST else LONGEST]


aten = torch.ops.aten

_CONVOLUTIONS = frozenset(
    {
        aten.conv1d,
        aten.conv2d,
        aten.conv3d,
        aten.conv_transpose1d,
        aten.conv_transpose2d,
        aten.conv_transpose3d,
        aten.convolution,
        aten._convolution,
    }
)

_ATTENTIONS = frozenset(
    {
        aten.scaled_dot_product_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention,
    }
)

_TRANSCENDENTALS = frozenset(
    {
        aten.exp,
        aten.exp2,
        aten.expm1,
        aten.log,
        aten.log2,
        aten.log1p,
        aten.sin,
        aten.cos,
        aten.tanh,
        aten.erf,
        aten.sigmoid,
        aten.gelu,
        aten.silu,
        aten.mish,
        aten.elu,
        aten.glu,
        aten.softplus,
        aten.log_sigmoid,
        aten.softmax,
        aten._softmax,
        aten._safe_softmax,
        aten.log_softmax,
        aten._log_softmax,
        aten.logsumexp,
        aten.pow,
        aten.atan2,
    }
)


def kind_of(op: Op, flow: Flow) -> Kind:
    """What bounds the op's time, read from its flow; three small sets name what a flow cannot
    tell: transcendental functions, convolutions (whose spans may be whole) and attention."""
    packet = getattr(op.target, "overloadpacket", op.target)
    if op.is_view:
        return "view"
    if packet in _CONVOLUTIONS:
        return "conv"
    if packet in _ATTENTIONS:
        return "attention"
    if packet in _TRANSCENDENTALS:
        # x² and x³ are multiplications.
        if packet is aten.pow and op.get("exponent") in (2, 3, 2.0, 3.0):
            return "pointwise"
        return "transcendental"
    for axis in flow.axes:
        folded = all(span is None for span in axis.writes)
        if axis.join is Join.SUM and folded and sum(s is not None for s in axis.reads) >= 2:
            return "gemm"
    if flow.pointwise:
        return "pointwise"
    if flow.flops != 0 or any(axis.join.folds for axis in flow.axes):
        return "reduce"
    return "copy"
