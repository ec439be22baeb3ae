"""How far float results may lie apart where the reals agree, stated before any run.

An output is of the *same order* if every op on its way is the original's, on whole tensors: the
same additions in the same order. Otherwise some reduction is taken in another order, or by another
kernel, and each such op obeys a bound: for an expression with at most m roundings on the way from
an operand to the result, the computed value differs from the exact one by at most γₘ times the
expression evaluated with absolute values, γₘ = m·u / (1 − m·u) (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, §3.1). Two orders of one sum are therefore at most 2γₘ of that apart,
given equal operands. Through ops that follow, errors pass on as those ops let them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from quire.capture.program import Op, Program
from quire.verify.original import Original
from quire.verify.poly import Poly
from quire.verify.sizes import Sizes
from quire.verify.term import BINDERS, Term
from quire.verify.value import NoMeaning, NotShown, Value

FUNCTION = 4
"""Roundings that one value of exp, tanh, a root … counts for: torch's are good to 4 ulp."""


def gamma(count: int, dtype: torch.dtype) -> float:
    """γ for `count` roundings; infinite where it says nothing."""
    error = count * torch.finfo(dtype).eps / 2
    return error / (1 - error) if error < 1 else float("inf")


def roundings(x: Term | Poly) -> int:
    """The most roundings between an operand and the result, each length at its largest; any order
    of a sum has at most one for each of its terms."""
    memo: dict[Term, int] = {}

    def count(t: Term | Poly) -> int:
        if isinstance(t, Poly):
            return 0
        if t not in memo:
            memo[t] = of(t)
        return memo[t]

    def of(t: Term) -> int:
        if t.op == "sum":
            return largest(t.args[0]) + count(t.args[1])
        if t.op in BINDERS:
            return count(t.args[1])
        if t.op == "add":
            return len(t.args[1]) + 1 + max(count(y) for y, _ in t.args[1])
        if t.op == "mul":
            return sum(abs(k) for _, k in t.args[1]) + max(count(y) for y, _ in t.args[1])
        inner = max((count(y) for y in _terms(t.args)), default=0)
        return inner + FUNCTION if t.op in ("fn", "exp") else inner

    return count(x)


def _terms(args: Iterable[object]) -> Iterable[Term]:
    for a in args:
        if isinstance(a, Term):
            yield a
        elif isinstance(a, tuple):
            yield from _terms(a)


def largest(size: Poly) -> int:
    """The largest value of a size, from the bounds of what stands in it."""
    total = 0
    for mono, c in size.terms:
        for x in mono:
            bound = [b.constant for b in x.upper if b.constant is not None]
            if not bound:
                raise NoMeaning(f"{x} has no largest value")
            c *= min(bound)
        total += c
    return total


def statements(
    program: Program, same: bool, finest: torch.dtype = torch.float64
) -> tuple[tuple[str, str], ...]:
    """For each output of `program`, what is said of its rounding. `same`: the applied program makes
    the original's calls, on whole tensors. `finest`: the most precise dtype it calculates in."""
    original = Original(program, Sizes(program))
    counts: dict[object, int | None] = {}
    said = []
    for k, out in enumerate(program.outputs):
        if not isinstance(out, fx.Node):
            continue
        label = f"output {k}"
        if same:
            said.append((label, "same order"))
            continue
        worst, unknown = (0.0, 0), 0
        for node in _above(program, out):
            found = _count(original, node, counts)
            unknown += found is None
            for dtype in _floats(program, node):
                coarse = max(dtype, finest, key=_eps)
                worst = max(worst, (2 * gamma(found or 0, coarse), found or 0))
        if not program.info(out).dtype.is_floating_point:
            said.append((label, "exact: no floats"))
        elif unknown:
            said.append((label, f"no bound: {unknown} ops are known by name only"))
        else:
            bound, most = worst
            said.append(
                (label, f"each op within 2γ of its evaluation in absolute values, given equal "
                        f"operands: m ≤ {most}, 2γ = {bound:.3g}")
            )  # fmt: skip
    return tuple(said)


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _floats(program: Program, node: fx.Node) -> set[torch.dtype]:
    """The floating dtypes of an op's results."""
    return {i.dtype for i in program.infos[node] if i.dtype.is_floating_point}


def _above(program: Program, out: fx.Node) -> list[fx.Node]:
    seen: set[fx.Node] = set()
    stack = [out]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += node.all_input_nodes
    return [n for n in seen if n in program.ops]


def _count(original: Original, node: fx.Node, counts: dict[object, int | None]) -> int | None:
    """Roundings of one op, its operands given; None where it is known by name only."""
    op = original.program.ops[node]
    key = (
        str(op.target),
        tuple((k, str(getattr(v, "info", v))) for k, v in op.arguments.items()),
    )
    if key not in counts:
        given = {o.node: original.cut(o.node) for o in op.operands}
        try:
            value = original.value(node, given, {})
            values = value if isinstance(value, tuple) else (value,)
            found = [roundings(v.scalar) for v in values if isinstance(v, Value)]
            counts[key] = max(found, default=0) + _narrows(original.program, op)
        except (NoMeaning, NotShown):
            counts[key] = None
    return counts[key]


def _narrows(program: Program, op: Op) -> bool:
    """Whether a result's dtype is less precise than an operand's: one rounding more."""
    read = [d for o in op.operands for d in _floats(program, o.node)]
    made = _floats(program, op.node)
    return bool(read and made) and max(map(_eps, made)) > min(map(_eps, read))
