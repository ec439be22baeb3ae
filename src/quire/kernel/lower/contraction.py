"""Sums of products, by equation; attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quire.capture.program import Op, Operand
from quire.flow.rules.contraction import spell
from quire.kernel import index as ix
from quire.kernel.ir import Expr, Fold, Num, Size, Soft
from quire.kernel.lower.table import Lowering, Tensor, as_float, as_kind, c, rule

Index = tuple[Expr, ...]


def contracted(low: Lowering, op: Op, equation: str, operands: Sequence[Operand]) -> Tensor:
    """The sum of products that `equation` spells."""
    terms, result = spell(equation, operands)
    tensors = [low.tensor(o) for o in operands]
    narrow = all(o.info.dtype == torch.bfloat16 for o in operands)
    sizes: dict[str, Size] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for label, size in zip(term, tensor.shape, strict=True):
            if label not in sizes or sizes[label] == 1:
                sizes[label] = size

    def at(i: Index) -> Expr:
        place: dict[str, Expr] = dict(zip(result, i, strict=True))
        over = {k: low.var(s, "k") for k, s in sizes.items() if k not in place}
        place |= over
        body: Expr | None = None
        for term, tensor in zip(terms, tensors, strict=True):
            index = tuple(
                ix.ZERO if size == 1 else place[label]
                for label, size in zip(term, tensor.shape, strict=True)
            )
            factor = as_float(tensor.at(index))
            body = factor if body is None else c("mul", body, factor)
        assert body is not None
        return Fold("sum", tuple(over.values()), body, narrow) if over else body

    shape = tuple(sizes[k] for k in result)
    return Tensor(shape, op.out.dtype, at)


def _plus(low: Lowering, value: Tensor, added: Operand | None, alpha: float, beta: float) -> Tensor:
    if added is None and alpha == 1:
        return value
    kept = low.stored(value)
    extra = None if added is None or beta == 0 else low.tensor(added)

    def at(i: Index) -> Expr:
        total = kept.at(i) if alpha == 1 else c("mul", kept.at(i), Num(float(alpha)))
        if extra is None:
            return total
        more = as_float(extra.broadcast(i))
        return c("add", total, more if beta == 1 else c("mul", more, Num(float(beta))))

    return Tensor(value.shape, value.dtype, at)


@rule("linear.default")
def linear(low: Lowering, op: Op) -> Tensor:
    weight: Operand = op["weight"]
    equation = "...k,nk->...n" if weight.ndim == 2 else "...k,k->..."
    return _plus(low, contracted(low, op, equation, (op["input"], weight)), op["bias"], 1, 1)


@rule("mm.default bmm.default mv.default dot.default outer.default")
def product(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")
    equation = {
        "mm": "mk,kn->mn",
        "bmm": "bmk,bkn->bmn",
        "mv": "mk,k->m",
        "dot": "k,k->",
        "outer": "m,n->mn",
    }[name]
    return contracted(low, op, equation, op.operands)


@rule("matmul.default")
def matmul(low: Lowering, op: Op) -> Tensor:
    a, b = op.operands
    left = "k" if a.ndim == 1 else "...mk"
    right = "k" if b.ndim == 1 else "...kn"
    out = "..." + ("m" if a.ndim > 1 else "") + ("n" if b.ndim > 1 else "")
    return contracted(low, op, f"{left},{right}->{out if max(a.ndim, b.ndim) > 1 else ''}", (a, b))


@rule("addmm.default baddbmm.default addmv.default")
def added_product(low: Lowering, op: Op) -> Tensor:
    name = op.target._schema.name.removeprefix("aten::")
    equation = {"addmm": "mk,kn->mn", "baddbmm": "bmk,bkn->bmn", "addmv": "mk,k->m"}[name]
    value = contracted(low, op, equation, op.operands[1:])
    return _plus(low, value, op.operands[0], op["alpha"], op["beta"])


@rule("einsum.default")
def einsum(low: Lowering, op: Op) -> Tensor:
    equation: str = op["equation"].replace(" ", "")
    if "->" not in equation:
        terms = equation.replace("...", "").replace(",", "")
        once = sorted(x for x in set(terms) if terms.count(x) == 1)
        equation += "->" + ("..." if "..." in equation else "") + "".join(once)
    return contracted(low, op, equation, op.operands)


@rule("scaled_dot_product_attention.default")
def attention(low: Lowering, op: Op) -> Tensor:
    """softmax(scale · q kᵀ + mask) v, heads of q in groups that share those of k and v."""
    query, key, value = (low.tensor(op[k]) for k in ("query", "key", "value"))
    scale = op["scale"]
    if scale is None:
        scale = float(query.shape[-1]) ** -0.5
    mask = None if op["attn_mask"] is None else low.tensor(op["attn_mask"])

    def shared(i: Index, of: Tensor) -> Index:
        """The batch index of a query as one of keys or values."""
        found = []
        for x, have, want in zip(i, query.shape[:-2], of.shape[:-2], strict=True):
            if have == want:
                found.append(x)
            else:
                found.append(ix.ZERO if want == 1 else ix.div(x, have // want))
        return tuple(found)

    def at(i: Index) -> Expr:
        *lead, row, d = i
        lead = tuple(lead)
        j, e = low.var(key.shape[-2], "j"), low.var(query.shape[-1], "e")
        dot = Fold(
            "sum",
            (e,),
            c("mul", query.at((*lead, row, e)), key.at((*shared(lead, key), j, e))),
        )
        score = c("mul", dot, Num(float(scale)))
        if mask is not None:
            m = mask.broadcast((*lead, row, j))
            if op["attn_mask"].info.dtype.is_floating_point:
                score = c("add", score, m)
            else:
                score = c("select", m, score, Num(float("-inf")))
        if op["is_causal"]:
            score = c("select", c("le", j, row), score, Num(float("-inf")))
        at_j = low.var(key.shape[-2], "j")
        weight = Soft(j, score, at_j)
        return Fold("sum", (at_j,), c("mul", weight, value.at((*shared(lead, value), at_j, d))))

    return Tensor(op.out.shape, op.out.dtype, at)


__all__ = ["as_kind", "contracted"]
