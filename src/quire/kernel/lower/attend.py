"""Attention found in expressions, whoever wrote it:

    Σ_j softmax_j(score(Σ_e q·k)) · v   →   Attend over live blocks of keys, then Merge

A score of −inf is a weight of exactly 0, so conditions that give −inf become the bounds of the
loop over keys where they are `j <= e` or `e <= j`, and a test within it where they are not. The
claim needs a live key in every row; a row without one gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from quire.kernel import index as ix
from quire.kernel.analysis import free, unit_stride
from quire.kernel.ir import (
    DOT,
    Attend,
    Buffer,
    Call,
    Expr,
    Fold,
    Merge,
    Num,
    Read,
    Size,
    Soft,
    Var,
    rewrite,
    walk,
)

BLOCK = 256
"""Keys that one worker takes at a time."""

DEAD = -1e30
"""Scores at or below this have no weight next to any live key."""


def attend(low: Any, e: Fold, axes: Sequence[Var]) -> Buffer | None:
    """The buffer that holds `e` for all of `axes`, if it is an attention."""
    if e.monoid != "sum" or len(e.over) != 1 or not isinstance(e.body, Call):
        return None
    if e.body.op != "mul":
        return None
    key, (weight, values) = e.over[0], e.body.args
    if isinstance(values, Soft):
        weight, values = values, weight
    if not isinstance(weight, Soft) or weight.at != key:
        return None
    score = ix.substitute(weight.score, {weight.over.name: key})
    dots = [x for x in walk(score) if isinstance(x, Fold)]
    if len(dots) != 1 or not isinstance(values, Read):
        return None
    match dots[0]:
        case Fold("sum", (inner,), Call("mul", (a, b))):
            pass
        case _:
            return None
    if key in free(a):
        a, b = b, a
    if key in free(a) or key not in free(b):
        return None
    wide = [v for v in axes if v in free(values) and v not in free(score)]
    if len(wide) != 1 or not unit_stride(values, wide[0]):
        return None
    rows = tuple(v for v in axes if v is not wide[0])
    query = low.side_by_side(a, (inner,), rows)
    if isinstance(query, Read) and query.buffer.dtype != torch.float32:
        query = low.kept(a, [*(v for v in rows if v != inner), inner], copy=True)
    keys = low.side_by_side(b, (inner,), (*rows, key))
    score = rewrite(score, lambda x: Call(DOT, ()) if x == dots[0] else None, ix.call)
    live, score = masked(score)
    lo, hi, rest = bounds(live, key)
    score = low._legal(score, (*rows, key))
    blocks: Size = (
        -(-key.size // BLOCK) if isinstance(key.size, int) else ((key.size + BLOCK - 1) // BLOCK)
    )
    width = wide[0].size
    parts = low._buffer((*(r.size for r in rows), blocks, width + 2), torch.float32)
    out = low._buffer((*(r.size for r in rows), width), torch.float32)
    # the order of out's dims is that of `axes`, which has the width last or is read so
    if axes[-1] is not wide[0]:
        return None
    low.nests.append(
        Attend(parts, rows, wide[0], key, inner, query, keys, values, score, rest, lo, hi, BLOCK)
    )
    low.nests.append(Merge(out, parts, rows, wide[0], key, lo, hi, BLOCK))
    return out


def masked(score: Expr) -> tuple[Expr, Expr]:
    """`score` as `live ? score : −inf`."""
    match score:
        case Call("select", (cond, a, Num(dead))) if dead <= DEAD:
            live, rest = masked(a)
            return ix.call("and", (cond, live)), rest
        case Call("select", (cond, Num(dead), a)) if dead <= DEAD:
            live, rest = masked(a)
            return ix.call("and", (ix.call("not", (cond,)), live)), rest
        case Call("select", (cond, Num(zero), Num(dead))) if dead <= DEAD and zero == 0:
            return cond, Num(0.0)
        case Call("add", (a, b)):
            left, x = masked(a)
            right, y = masked(b)
            return ix.call("and", (left, right)), ix.call("add", (x, y))
    return Num(True), score


def bounds(live: Expr, key: Var) -> tuple[Expr, Expr, Expr]:
    """The keys `lo <= j < hi` that `live` allows, and what of it those bounds do not say."""
    lo: Expr = ix.ZERO
    hi: Expr = ix.of_size(key.size)
    rest: Expr = Num(True)
    for part in _conjuncts(live):
        match part:
            case Call("le" | "lt" as op, (a, b)):
                gap = ix.add(b, ix.mul(a, Num(-1)))  # 0 <= gap, or 0 < gap
                terms = dict(ix._terms(gap))
                factor = terms.pop(key, 0)
                other = ix._sum(terms)
                if factor in (1, -1) and key not in free(other):
                    if factor == -1:  # j <= other
                        end = other if op == "lt" else ix.add(other, Num(1))
                        hi = (
                            end
                            if hi == ix.of_size(key.size) and _less(end, key)
                            else Call("min", (hi, end))
                        )
                    else:  # −other <= j
                        start = ix.mul(other, Num(-1))
                        start = start if op == "le" else ix.add(start, Num(1))
                        lo = Call("max", (lo, start))
                    continue
        rest = ix.call("and", (rest, part))
    return lo, hi, rest


def _less(end: Expr, key: Var) -> bool:
    _, high = ix.bound(end)
    return high is not None and isinstance(key.size, int) and high <= key.size


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, Call) and e.op == "and":
        return _conjuncts(e.args[0]) + _conjuncts(e.args[1])
    if isinstance(e, Call) and e.op == "not" and isinstance(e.args[0], Call):
        inner = e.args[0]
        if inner.op == "or":
            return [y for x in inner.args for y in _conjuncts(ix.call("not", (x,)))]
        if inner.op in ("lt", "le"):
            a, b = inner.args
            if all(ix.kind(x) == "int" for x in (a, b)):
                return [ix.call("le" if inner.op == "lt" else "lt", (b, a))]
    return [] if e == Num(True) else [e]
