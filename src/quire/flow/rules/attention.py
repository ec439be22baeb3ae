"""Fused attention."""

from __future__ import annotations

import attrs

from quire.capture.program import Op, Operand, Size
from quire.flow.parts import causal_rows
from quire.flow.registry import rule
from quire.flow.relation import Axis, Flow, Span, span
from quire.flow.rules.common import aten, divide, equal, make_axis, make_flow, nothing, product


@rule(*aten("scaled_dot_product_attention"))
def attention(op: Op) -> Flow:
    """Batch, heads and query rows split; the keys are needed whole.

    With fewer key than query heads a unit is a key head and its G query heads; the second axis
    over heads takes some of the G for every key head. Rows of a causal attention know their place
    and read the keys up to it.
    """
    if op["dropout_p"]:
        return nothing(op, "it draws random numbers, whose order a split would change")
    q, k, v = op["query"], op["key"], op["value"]
    rows, wide = q.ndim - 2, q.ndim - 1
    tried: list[tuple[int, Size, Span, Span | None]] = []
    reasons: dict[int, str] = {}
    for dim in range(q.ndim - 2):
        size = k.shape[dim]
        if not equal(size, v.shape[dim]):
            reasons[dim] = "keys and values differ in size here"
        elif equal(size, q.shape[dim]):
            tried.append((dim, size, span(dim), span(dim)))
        elif op["enable_gqa"] and dim == q.ndim - 3 and (n := divide(q.shape[dim], size)):
            tried.append((dim, size, span(dim, scale=n), span(dim)))
            tried.append((dim, n, span(dim, outer=size), None))
        else:
            reasons[dim] = "keys are broadcast to the queries here"
    if not op["is_causal"]:
        tried.append((rows, q.shape[rows], span(rows), None))
    axes: list[Axis] = []
    for dim, size, queries, keys in tried:
        found = shared(op, dim, size, queries, keys)
        if found is None:
            reasons[dim] = "the mask's size differs here"
        else:
            axes.append(found)
    reasons[wide] = "values narrower than the queries have no fast kernel"
    if op["is_causal"]:
        causal = make_axis(op, q.shape[rows], {q.index: span(rows)}, {0: span(rows)})
        edit = lambda part: {"is_causal": part.lo}  # noqa: E731
        axes.append(attrs.evolve(causal, edit=edit, target=causal_rows))
    width = q.shape[-1] + v.shape[-1]
    flops = 2 * product(q.shape[:-1]) * k.shape[-2] * width
    return make_flow(op, axes, reasons=reasons, flops=flops)


def shared(op: Op, dim: int, size: Size, queries: Span, keys: Span | None) -> Axis | None:
    """An axis of `size` units that queries and output, the mask, and maybe keys and values have.

    None if the mask does not broadcast to the queries' dim.
    """
    q: Operand = op["query"]
    reads = {q.index: queries}
    if keys is not None:
        reads |= {op["key"].index: keys, op["value"].index: keys}
    mask: Operand | None = op["attn_mask"]
    own = dim - (q.ndim - mask.ndim) if mask is not None else -1
    if not equal(op.out.shape[dim], q.shape[dim]):
        return None
    if mask is not None and own >= 0 and mask.shape[own] != 1:
        if not equal(mask.shape[own], q.shape[dim]):
            return None
        reads[mask.index] = Span(own, scale=queries.scale, outer=queries.outer)
    return make_axis(op, size, reads, {0: queries})
