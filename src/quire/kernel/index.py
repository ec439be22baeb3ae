"""Building expressions: arithmetic that folds constants and undoes reshapes.

Integer rules used, for c > 0 and 0 <= r < c:  (c·x + r) / c = x,  (c·x + r) % c = r,
c·(x / c) + x % c = x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import sympy

from quire.kernel.ir import Call, Expr, Fold, Length, Num, Size, Soft, Var, kind, rewrite

ZERO, ONE = Num(0), Num(1)


def of_size(size: Size) -> Expr:
    if isinstance(size, int):
        return Num(size)
    return Num(int(size)) if size.is_Integer else Length(size)


def bound(e: Expr) -> tuple[int | None, int | None]:
    """The least and the largest value an integer may have; None where none is known."""
    match e:
        case Num(value):
            return (int(value), int(value)) if not isinstance(value, float) else (None, None)
        case Var(_, size):
            return 0, (size - 1 if isinstance(size, int) else None)
        case Length():
            return 1, None
        case Call("add", args):
            ends = [bound(a) for a in args]
            low = None if any(lo is None for lo, _ in ends) else sum(lo for lo, _ in ends)  # type: ignore[misc]
            high = None if any(hi is None for _, hi in ends) else sum(hi for _, hi in ends)  # type: ignore[misc]
            return low, high
        case Call("mul", (a, Num(c))) if isinstance(c, int):
            low, high = bound(a)
            if c < 0:
                low, high = high, low
            return (None if low is None else low * c), (None if high is None else high * c)
        case Call("idiv", (a, Num(c))) if isinstance(c, int) and c > 0:
            low, high = bound(a)
            return (None if low is None else low // c), (None if high is None else high // c)
        case Call("imod", (a, Num(c))) if isinstance(c, int) and c > 0:
            low, high = bound(a)
            if low is not None and low >= 0:
                return 0, (c - 1 if high is None else min(c - 1, high))
    return None, None


def _terms(e: Expr) -> dict[Expr, int]:
    """An integer expression as a sum: term → factor, the constant under ONE."""
    match e:
        case Num(value):
            return {ONE: int(value)} if value else {}
        case Call("add", args):
            total: dict[Expr, int] = {}
            for a in args:
                for t, c in _terms(a).items():
                    total[t] = total.get(t, 0) + c
            return {t: c for t, c in total.items() if c}
        case Call("mul", (a, Num(c))) if isinstance(c, int):
            return {t: f * c for t, f in _terms(a).items()}
    return {e: 1}


def _order(e: Expr) -> tuple[int, str]:
    return (1, "") if e == ONE else (0, repr(e))


def _sum(terms: Mapping[Expr, int]) -> Expr:
    terms = {t: c for t, c in terms.items() if c}
    # c·(x / c) + x % c = x
    for t, c in list(terms.items()):
        if isinstance(t, Call) and t.op == "imod" and isinstance(t.args[1], Num):
            by = t.args[1].value
            whole = Call("idiv", (t.args[0], t.args[1]))
            if terms.get(whole) == c * by:
                rest = {k: v for k, v in terms.items() if k not in (t, whole)}
                for k, v in _terms(t.args[0]).items():
                    rest[k] = rest.get(k, 0) + v * c
                return _sum(rest)
    parts = []
    for t in sorted(terms, key=_order):
        c = terms[t]
        parts.append(Num(c) if t == ONE else t if c == 1 else Call("mul", (t, Num(c))))
    if not parts:
        return ZERO
    return parts[0] if len(parts) == 1 else Call("add", tuple(parts))


def add(*args: Expr) -> Expr:
    if any(kind(a) == "float" for a in args):
        return call("add", args)
    return _sum(_terms(Call("add", args)))


def mul(a: Expr, b: Expr) -> Expr:
    return call("mul", (a, b))


def div(a: Expr, by: Size) -> Expr:
    """Floor division of an integer that is not negative."""
    if by == 1:
        return a
    if not isinstance(by, int):
        return Call("idiv", (a, of_size(by)))
    low, high = bound(a)
    if low is not None and high is not None and low // by == high // by:
        return Num(low // by)
    terms = _terms(a)
    whole = {t: c // by for t, c in terms.items() if c % by == 0}
    rest = _sum({t: c for t, c in terms.items() if c % by})
    low, high = bound(rest)
    if whole and low is not None and low >= 0:
        if high is not None and high < by:
            return _sum(whole)
        return add(_sum(whole), div(rest, by))
    match a:
        case Call("idiv", (x, Num(c))) if isinstance(c, int):
            return div(x, c * by)
    return Call("idiv", (a, Num(by)))


def mod(a: Expr, by: Size) -> Expr:
    if by == 1:
        return ZERO
    if not isinstance(by, int):
        return Call("imod", (a, of_size(by)))
    low, high = bound(a)
    if low is not None and high is not None and low // by == high // by:
        return add(a, Num(-(low // by) * by))
    rest = _sum({t: c for t, c in _terms(a).items() if c % by})
    low, high = bound(rest)
    if low is not None and low >= 0:
        if high is not None and high < by:
            return rest
        return Call("imod", (rest, Num(by)))
    return Call("imod", (a, Num(by)))


def call(op: str, args: Sequence[Expr]) -> Expr:
    """An operator, with constants folded where that is exact."""
    args = tuple(args)
    floats = any(kind(a) == "float" for a in args)
    match op, args:
        case "add", _ if not floats:
            return _sum(_terms(Call("add", args)))
        case "add", (a, b):
            if b in (Num(0), Num(0.0)):
                return a
            if a in (Num(0), Num(0.0)):
                return b
        case "sub", (a, b) if not floats:
            return add(a, mul(b, Num(-1)))
        case "sub", (a, Num(c)) if c == 0:
            return a
        case "mul", (Num(x), Num(y)) if not floats:
            return Num(int(x) * int(y))
        case "mul", (Num(), b) if not floats and not isinstance(b, Num):
            return call("mul", (b, args[0]))
        case "mul", (a, Num(c)) if not floats:
            return _sum({t: f * int(c) for t, f in _terms(a).items()})
        case "mul", (a, Num(c)) if c == 1:
            return a
        case "mul", (Num(c), b) if c == 1:
            return b
        case "div", (a, Num(c)) if c == 1 and floats:
            return a
        case "idiv", (a, Num(c)) if isinstance(c, int):
            return div(a, c)
        case "imod", (a, Num(c)) if isinstance(c, int):
            return mod(a, c)
        case "neg", (Num(x),):
            return Num(-x)
        case "neg", (a,) if not floats:
            return mul(a, Num(-1))
        case "tofloat", (Num(x),):
            return Num(float(x))
        case "tofloat", (a,) if kind(a) == "float":
            return a
        case "toint", (a,) if kind(a) == "int":
            return a
        case "tobool", (a,):
            return a if kind(a) == "bool" else call("ne", (a, Num(0)))
        case "and", (a, b):
            if a == Num(False) or b == Num(False):
                return Num(False)
            if a == Num(True):
                return b
            if b == Num(True) or a == b:
                return a
        case "or", (a, b):
            if a == Num(True) or b == Num(True):
                return Num(True)
            if a == Num(False):
                return b
            if b == Num(False) or a == b:
                return a
        case "not", (Num(x),):
            return Num(not x)
        case "not", (Call("not", (a,)),):
            return a
        case "select", (Num(c), a, b):
            return a if c else b
        case "select", (_, a, b) if a == b:
            return a
        case (("le" | "lt" | "eq" | "ne"), (a, b)) if not floats:
            return _compare(op, a, b)
    return Call(op, args)


def _compare(op: str, a: Expr, b: Expr) -> Expr:
    if kind(a) == "bool" or kind(b) == "bool":
        if isinstance(a, Num) and isinstance(b, Num):
            return (
                Num((a.value == b.value) is (op == "eq"))
                if op in ("eq", "ne")
                else Call(op, (a, b))
            )
        if op == "ne" and b in (Num(False), Num(0)):
            return a
        return Call(op, (a, b))
    low, high = bound(add(b, mul(a, Num(-1))))  # b − a
    if op == "le":
        if low is not None and low >= 0:
            return Num(True)
        if high is not None and high < 0:
            return Num(False)
    if op == "lt":
        if low is not None and low > 0:
            return Num(True)
        if high is not None and high <= 0:
            return Num(False)
    if op in ("eq", "ne"):
        if low == high == 0:
            return Num(op == "eq")
        if (low is not None and low > 0) or (high is not None and high < 0):
            return Num(op == "ne")
    return Call(op, (a, b))


def substitute(e: Expr, at: Mapping[str, Expr]) -> Expr:
    """`e` with variables replaced, by name. Bound variables have names of their own."""
    return rewrite(e, lambda x: at.get(x.name) if isinstance(x, Var) else None, call)


def flatten(index: Sequence[Expr], shape: Sequence[Size]) -> Expr:
    """The row-major position of `index`."""
    total: Expr = ZERO
    for i, size in zip(index, shape, strict=True):
        total = add(mul(total, of_size(size)), i) if size != 1 else total
    return total


def unflatten(position: Expr, shape: Sequence[Size]) -> tuple[Expr, ...]:
    found: list[Expr] = []
    for k in range(len(shape) - 1, 0, -1):
        found.insert(0, mod(position, shape[k]))
        position = div(position, shape[k])
    return (position, *found) if shape else ()


def reindex(index: Sequence[Expr], new: Sequence[Size], old: Sequence[Size]) -> tuple[Expr, ...]:
    """The index into shape `old` of the element at `index` of the same data in shape `new`.

    Works block by block of dims that multiply to the same, so that no division by a runtime
    length arises where none is needed.
    """
    result: list[Expr] = []
    i = j = 0
    while i < len(new) or j < len(old):
        a, b = i, j
        left: Size = 1
        right: Size = 1
        while True:
            if i < len(new) and (j >= len(old) or _smaller(left, right) or (a == i)):
                left = left * new[i]
                i += 1
            elif j < len(old):
                right = right * old[j]
                j += 1
            if a < i and sympy.expand(left - right) == 0 and (b < j or left == 1):
                break
            if i >= len(new) and j >= len(old):
                break
        part = flatten(index[a:i], new[a:i])
        result.extend(unflatten(part, old[b:j]))
    return tuple(result)


def _smaller(a: Size, b: Size) -> bool:
    diff = sympy.expand(sympy.sympify(a) - sympy.sympify(b))
    if diff.is_number:
        return bool(diff < 0)
    ones = {s: 1000003 for s in diff.free_symbols}
    return bool(diff.xreplace(ones) < 0)


def is_finite(value: float) -> bool:
    return math.isfinite(value)


__all__ = [
    "ONE", "ZERO", "Fold", "Soft", "add", "bound", "call", "div", "flatten", "mod", "mul",
    "of_size", "reindex", "substitute", "unflatten",
]  # fmt: skip
