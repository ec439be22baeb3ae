"""What the machine's larger calls do: products, attention by blocks, top-k, scans, folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quire.verify.field_ops import Unsupported
from quire.verify.kernel.phase import ATTEND
from quire.verify.kernel.run.numbers import as_tensor
from quire.verify.kernel.source import Expr, Lambda

if TYPE_CHECKING:
    from quire.verify.kernel.run.machine import Env, Worker


def dot(q: Worker, args: Sequence[Expr], env: Env, depth: int) -> None:
    """out[at + a·out_a + b·out_b] = Σ_k w[w_at + b·w_step + k] · x[x_at + a·x_step + k]"""
    out, at, out_a, out_b, w, w_at, w_step, bs, x, x_at, x_step, as_, k = args
    to, weights, vectors = (q.array(e, env) for e in (out, w, x))
    sizes = [q.whole(e, env) for e in (out_a, out_b, w_step, bs, x_step, as_, k)]
    by_a, by_b, step_b, count_b, step_a, count_a, width = sizes
    starts = [q.index(q.value(e, env, depth)) for e in (at, w_at, x_at)]
    flat = [t.reshape(-1).tolist() for t in torch.broadcast_tensors(*starts)]
    for here, from_w, from_x in zip(*flat, strict=True):
        rows = q.real(weights.rows(from_w, count_b, step_b, width))
        columns = q.real(vectors.rows(from_x, count_a, step_a, width))
        found = q.numbers.matmul(columns, rows.T)
        found = q.numbers.stored(found) if to.settles else found
        places = torch.arange(count_a)[:, None] * by_a + torch.arange(count_b) * by_b
        to.store(places + here, found)


def attend(q: Worker, args: Sequence[Expr], env: Env, depth: int) -> None:
    """For each row and block of keys: what its scores are shifted by, Σ exp, Σ exp · value. Blocks
    go round the workers: who takes which is the runtime's."""
    named: dict[str, Expr] = dict(zip(ATTEND, args, strict=True))
    count = {k: q.whole(named[k], env) for k in
             ("outer", "group", "block", "inner", "key_step", "value_step", "width")}  # fmt: skip
    parts, queries, keys, values = (q.array(named[k], env) for k in
                                    ("parts", "q", "keys", "values"))  # fmt: skip
    block, width = count["block"], count["width"]
    turn = 0
    for u in range(count["outer"]):
        for g in range(count["group"]):

            def at(name: str, u: int = u, g: int = g) -> int:
                return int(q.apply(named[name], env, (u, g), 0))

            lo, hi = at("lo"), at("hi")
            for s in range(lo // block, (hi - 1) // block + 1 if hi > lo else lo // block):
                turn += 1
                if turn % q.workers != q.number:
                    continue
                first, last = max(lo, s * block), min(hi, (s + 1) * block)
                n = last - first
                query = q.real(queries.rows(at("query"), 1, 1, count["inner"]))
                row = at("key") + first * count["key_step"]
                key = q.real(keys.rows(row, n, count["key_step"], count["inner"]))
                product = q.numbers.matmul(query, key.T)[0]
                j = torch.arange(first, last)
                score = q.real(q.apply(named["score"], env, (u, g, j, product), 1)).expand(n)
                top = q.numbers.shift(score)
                weight = q.numbers.function("exp", q.numbers.add(score, q.numbers.neg(top)))
                row = at("value") + first * count["value_step"]
                value = q.real(values.rows(row, n, count["value_step"], width))
                total = q.numbers.total(weight)[None]
                above = q.numbers.matmul(weight[None], value)[0]
                place = at("part") + s * (width + 2)
                parts.store(place + torch.arange(width + 2), torch.cat([top[None], total, above]))


def merge(q: Worker, args: Sequence[Expr], env: Env, depth: int) -> None:
    """The blocks of each row joined; zeros where no key is live."""
    out, at, step, parts, part_at, width, block, lo, hi = args
    to, held = q.array(out, env), q.array(parts, env)
    by, size, keys = (q.whole(e, env) for e in (step, width, block))
    starts = [q.index(q.value(e, env, depth)) for e in (at, part_at, lo, hi)]
    flat = [t.reshape(-1).tolist() for t in torch.broadcast_tensors(*starts)]
    ops = q.numbers
    for here, row, first, last in zip(*flat, strict=True):
        s0, s1 = first // keys, (last - 1) // keys + 1 if last > first else first // keys
        found = ops.const(0.0).expand(size)
        if s1 > s0:
            blocks = held.rows(row + s0 * (size + 2), s1 - s0, size + 2, size + 2)
            top = ops.shift(blocks[:, 0])
            scale = ops.function("exp", ops.add(blocks[:, 0], ops.neg(top)))
            total = ops.matmul(scale[None], blocks[:, 1:])[0]
            if bool((total[:1] != ops.const(0.0)).all()):
                found = ops.div(total[1:], total[:1].expand(size))
        found = ops.stored(found) if to.settles else found
        to.store(here + by * torch.arange(size), found)


def topk(q: Worker, args: Sequence[Expr], env: Env, depth: int) -> None:
    """The k largest in falling order, the first of equals first."""
    n, k, largest, body, put = args
    if depth or not isinstance(put, Lambda):
        raise Unsupported("top-k of many rows at once")
    size, count = q.whole(n, env), q.whole(k, env)
    row = q.real(q.apply(body, env, (torch.arange(size),), 1)).expand(size)
    falling = bool(as_tensor(q.value(largest, env, 0)))
    order = torch.sort(q.numbers.rank(row), descending=falling, stable=True).indices
    for r, j in enumerate(order[:count].tolist()):
        q.run(put.body, {**env, **dict(zip(put.params, (r, j, row[j]), strict=True))}, 0)


def _scan(step: str) -> Callable[[Worker, Sequence[Expr], Env, int], None]:
    def run(q: Worker, args: Sequence[Expr], env: Env, depth: int) -> None:
        """Each prefix folded, and put."""
        n, body, put = args
        if not isinstance(put, Lambda):
            raise Unsupported("a scan without a body")
        total: Any = None
        for i in range(q.whole(n, env)):
            value = as_tensor(q.apply(body, env, (i,), depth))
            if total is None:
                total = value
            elif value.is_floating_point():
                total = getattr(q.numbers, step)(total, value)
            else:
                total = total + value if step == "add" else total * value
            q.run(put.body, {**env, **dict(zip(put.params, (i, total), strict=True))}, depth)

    return run


STATEMENTS: dict[str, Callable[[Worker, Sequence[Expr], Env, int], None]] = {
    "q.dot": dot, "q.dot_bf16": dot, "q.attend": attend, "q.merge": merge, "q.topk": topk,
    "q.scan_sum": _scan("add"), "q.scan_prod": _scan("mul"),
}  # fmt: skip


def _sum(q: Worker, x: Tensor) -> Tensor:
    return q.numbers.total(x) if x.is_floating_point() else x.long().sum(0)


def _product(q: Worker, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x.long().prod(0)
    found = x[0]
    for row in x[1:]:
        found = q.numbers.mul(found, row)
    return found


def _extreme(word: str) -> Callable[[Worker, Tensor], Tensor]:
    def run(q: Worker, x: Tensor) -> Tensor:
        if x.is_floating_point():
            return q.numbers.extreme(word, x)
        return x.long().amax(0) if word == "max" else x.long().amin(0)

    return run


FOLDS: dict[str, Callable[[Worker, Tensor], Tensor]] = {
    "q.sum": _sum, "q.isum": _sum, "q.prod": _product,
    "q.max": _extreme("max"), "q.min": _extreme("min"),
    "q.any": lambda q, x: x.bool().any(0), "q.all": lambda q, x: x.bool().all(0),
}  # fmt: skip
