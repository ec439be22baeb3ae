"""Matrix products and their kin, written as equations."""

from __future__ import annotations

from collections.abc import Sequence

from quire.capture.program import Op, Operand, Size
from quire.flow.registry import rule
from quire.flow.relation import Axis, Edit, Flow, Join, Part, Span, span
from quire.flow.rules.common import aten, broadcast, equal, make_axis, make_flow, nothing, product

Labels = tuple[str, ...]


def spell(equation: str, operands: Sequence[Operand]) -> tuple[list[Labels], Labels]:
    """The labels of each term of `"...mk,kn->...mn"`; `...` becomes batch labels, aligned right."""
    left, right = equation.replace(" ", "").split("->")
    terms: list[Labels] = []
    most = 0
    for term, operand in zip(left.split(","), operands, strict=True):
        extra = operand.ndim - len(term.replace("...", ""))
        most = max(most, extra if "..." in term else 0)
        terms.append(_expand(term, extra))
    return terms, _expand(right, most)


def _expand(term: str, extra: int) -> Labels:
    before, dots, after = term.partition("...")
    batch = tuple(f"#{extra - 1 - i}" for i in range(extra)) if dots else ()
    return (*before, *batch, *after)


def contract(
    op: Op,
    equation: str,
    operands: Sequence[Operand],
    *,
    added: Operand | None = None,
    drop: Edit | None = None,
    summable: bool = True,
) -> Flow:
    """The axes of a sum of products.

    One axis for each label: concatenated if the output has it, else summed over. `added` is the
    operand added to the sum, broadcast to the output, and `drop` the edit that leaves it out;
    with `summable` false the labels summed over give no axis.
    """
    terms, result = spell(equation, operands)
    sizes: dict[str, Size] = {}
    for term, operand in zip(terms, operands, strict=True):
        for label, size in zip(term, operand.shape, strict=True):
            if label not in sizes or sizes[label] == 1:
                sizes[label] = size
    axes: list[Axis] = []
    reasons: dict[int, str] = {}
    for label, size in sizes.items():
        reads: dict[int, Span] = {}
        why = ""
        for term, operand in zip(terms, operands, strict=True):
            if term.count(label) > 1:
                why = f"{label} occurs twice in one term (a diagonal)"
            elif label in term and equal(operand.shape[term.index(label)], size):
                reads[operand.index] = span(term.index(label))
            elif label in term and operand.shape[term.index(label)] != 1:
                why = f"sizes {operand.shape[term.index(label)]} and {size} may differ"
        if label in result:
            dim = result.index(label)
            if added is not None:
                found = broadcast(added, op.out.shape, dim)
                if isinstance(found, Span):
                    reads[added.index] = found
                elif found is not None:
                    why = found
            if why:
                reasons[dim] = why
            else:
                axes.append(make_axis(op, size, reads, {0: span(dim)}))
        elif not why and summable:
            init = None if added is None else added.index
            axes.append(make_axis(op, size, reads, {}, join=Join.SUM, init=init, edit=drop))
    flops = 2 * product(sizes.values())
    return make_flow(op, axes, reasons=reasons, flops=flops)


def without_bias(part: Part) -> dict[str, None]:
    return {"bias": None}


def without_self(part: Part) -> dict[str, int]:
    """addmm and its kin read `self` no more (not even its NaNs) when `beta` is 0."""
    return {"beta": 0}


@rule(*aten("linear"))
def linear(op: Op) -> Flow:
    weight: Operand = op["weight"]
    bias: Operand | None = op["bias"]
    return contract(
        op,
        "...k,nk->...n" if weight.ndim == 2 else "...k,k->...",
        (op["input"], weight),
        added=bias,
        drop=None if bias is None else without_bias,
    )


@rule(*aten("mm bmm mv dot vdot outer"))
def plain_product(op: Op) -> Flow:
    name = op.target._schema.name.removeprefix("aten::")
    equations = {
        "mm": "mk,kn->mn",
        "bmm": "bmk,bkn->bmn",
        "mv": "mk,k->m",
        "dot": "k,k->",
        "vdot": "k,k->",
        "outer": "m,n->mn",
    }
    return contract(op, equations[name], op.operands)


@rule(*aten("matmul"))
def matmul(op: Op) -> Flow:
    a, b = op.operands
    left = "k" if a.ndim == 1 else "...mk"
    right = "k" if b.ndim == 1 else "...kn"
    out = "..." + ("m" if a.ndim > 1 else "") + ("n" if b.ndim > 1 else "")
    if a.ndim == 1 and b.ndim == 1:
        out = ""
    return contract(op, f"{left},{right}->{out}", op.operands)


@rule(*aten("addmm baddbmm addbmm addmv"))
def added_product(op: Op) -> Flow:
    name = op.target._schema.name.removeprefix("aten::")
    equations = {
        "addmm": "mk,kn->mn",
        "baddbmm": "bmk,bkn->bmn",
        "addbmm": "bmk,bkn->mn",
        "addmv": "mk,k->m",
    }
    # With another factor the value to start from would not be the operand itself.
    return contract(
        op,
        equations[name],
        op.operands[1:],
        added=op.operands[0],
        drop=without_self,
        summable=op["beta"] == 1,
    )


@rule(*aten("einsum"))
def einsum(op: Op) -> Flow:
    equation: str = op["equation"].replace(" ", "")
    if "->" not in equation:
        terms = equation.replace("...", "").replace(",", "")
        once = sorted(c for c in set(terms) if terms.count(c) == 1)
        equation += "->" + ("..." if "..." in equation else "") + "".join(once)
    return contract(op, equation, op.operands)


@rule(*aten("bilinear"))
def bilinear(op: Op) -> Flow:
    bias: Operand | None = op["bias"]
    return contract(
        op,
        "...i,...j,oij->...o",
        (op["input1"], op["input2"], op["weight"]),
        added=bias,
        drop=None if bias is None else without_bias,
    )


@rule(*aten("cdist _cdist_forward"))
def cdist(op: Op) -> Flow:
    """Distances of all pairs: not a sum of products, but its rows, columns and batch split."""
    found = contract(op, "...mk,...nk->...mn", op.operands, summable=False)
    return found if op.out.ndim else nothing(op, "no dims")
