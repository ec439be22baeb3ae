"""Facts about expressions and nests that several steps ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from quire.kernel import index as ix
from quire.kernel.ir import (
    AnyNest,
    Buffer,
    Call,
    Expr,
    Fold,
    Nest,
    Num,
    Read,
    Soft,
    Var,
    children,
    rewrite,
)


def unit_stride(e: Read, k: Var) -> bool:
    """Whether the elements read along `k` are neighbours in memory."""
    place = address(e)
    terms = ix._terms(place)
    return terms.get(k) == 1 and all(t == k or k not in free(t) for t in terms)


def side_by_side(e: Read, over: Sequence[Var]) -> bool:
    """Whether the elements over `over` are neighbours in memory, in row-major order."""
    terms = ix._terms(address(e))
    step = 1
    for k in reversed(over):
        if terms.get(k) != step or any(t != k and k in free(t) for t in terms):
            return False
        if not isinstance(k.size, int):
            return k is over[0]
        step *= k.size
    return True


def address(e: Read) -> Expr:
    """The position of the element in its buffer."""
    total: Expr = ix.ZERO
    for i, step in zip(e.at, e.buffer.strides, strict=True):
        total = ix.add(total, ix.mul(i, ix.of_size(step)))
    return total


def free(e: Expr) -> set[Var]:
    """The variables of `e` that no fold within it binds."""
    return _free(e, {})


def _free(e: Expr, memo: dict[Expr, set[Var]]) -> set[Var]:
    if e in memo:
        return memo[e]
    if isinstance(e, Var):
        found = {e}
    else:
        found = set()
        for child in children(e):
            found |= _free(child, memo)
        if isinstance(e, Fold):
            found -= set(e.over)
        elif isinstance(e, Soft):
            found = (_free(e.score, memo) - {e.over}) | _free(e.at, memo)
    memo[e] = found
    return found


def canonical(e: Expr, axes: Sequence[Var]) -> Expr:
    """`e` with its variables renamed by their order, so that equal meanings compare equal."""
    names: dict[str, Var] = {a.name: Var(f"${k}", a.size) for k, a in enumerate(axes)}

    def change(x: Expr) -> Expr | None:
        if isinstance(x, Var):
            return names.setdefault(x.name, Var(f"$b{len(names)}", x.size))
        if isinstance(x, Fold):
            over = tuple(names.setdefault(v.name, Var(f"$b{len(names)}", v.size)) for v in x.over)
            return Fold(x.monoid, over, rewrite(x.body, change, plain_call), x.narrow)
        if isinstance(x, Soft):
            over = names.setdefault(x.over.name, Var(f"$b{len(names)}", x.over.size))
            return Soft(
                over, rewrite(x.score, change, plain_call), rewrite(x.at, change, plain_call)
            )
        return None

    return rewrite(e, change, plain_call)


def plain_call(op: str, args: tuple[Expr, ...]) -> Expr:
    return Call(op, args)


def mapped(
    nest: AnyNest, change: Callable[[Expr], Expr], buffer: Callable[[Buffer], Buffer]
) -> AnyNest:
    """A nest with its expressions and buffers replaced."""
    new: dict[str, Any] = {}
    for field in attrs.fields(type(nest)):
        value = getattr(nest, field.name)
        if isinstance(value, Buffer):
            new[field.name] = buffer(value)
        elif field.name == "at":
            new["at"] = tuple(change(x) for x in value)
        elif isinstance(value, Num | Read | Call | Fold | Soft) or (
            isinstance(value, Var) and field.name in ("value", "lo", "hi")
        ):
            new[field.name] = change(value)
    return attrs.evolve(nest, **new)


def weights_of(nest: AnyNest) -> Read | None:
    """The weights that a contraction streams, if it has any."""
    if not isinstance(nest, Nest) or nest.fold != "sum":
        return None
    match nest.value:
        case Call("mul", (Read() as a, Read() as b)):
            for side in (b, a):
                if side.buffer.role == "state" and set(nest.over) & {
                    v for e in side.at for v in free(e)
                }:
                    return side
    return None
