"""Index expressions over all elements at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quire.kernel.ir import AnyNest, Call, Expr, Length, Num, Read, Var, children, expressions


class NotLocalError(Exception):
    """An element needs what other workers compute in the same phase."""


def numel(axes: Sequence[Var]) -> int:
    total = 1
    for a in axes:
        total *= int(a.size)
    return total


def grid_of(axes: Sequence[Var]) -> dict[str, Any]:
    """The value of each variable at every element, row-major."""
    flat = np.arange(numel(axes))
    found: dict[str, Any] = {}
    for a in reversed(axes):
        found[a.name] = flat % int(a.size)
        flat = flat // int(a.size)
    return found


def evaluate(e: Expr, grid: dict[str, Any]) -> Any:
    """An integer expression at every element; runtime lengths and their variables count as 0."""
    match e:
        case Num(value):
            return int(value)
        case Var(name, _):
            return grid.get(name, 0)
        case Length():
            return 1
        case Read():
            raise NotLocalError
        case Call(op, args):
            if op == "select":
                test, a, b = (evaluate(x, grid) for x in args)
                return np.where(test, a, b)
            a = [evaluate(x, grid) for x in args]
            match op:
                case "add":
                    return sum(a[1:], a[0])
                case "mul":
                    return a[0] * a[1]
                case "idiv":
                    return a[0] // a[1]
                case "imod":
                    return a[0] % a[1]
                case "lt":
                    return a[0] < a[1]
                case "le":
                    return a[0] <= a[1]
                case "eq":
                    return a[0] == a[1]
                case "ne":
                    return a[0] != a[1]
                case "min":
                    return np.minimum(a[0], a[1])
                case "max":
                    return np.maximum(a[0], a[1])
                case "and":
                    return np.logical_and(a[0], a[1])
                case "neg":
                    return -a[0]
    raise NotLocalError


def taken_reads(nest: AnyNest, grid: dict[str, Any]) -> list[tuple[Read, Any]]:
    """The reads of a nest, each with the elements at which it is reached (None: all)."""
    found: list[tuple[Read, Any]] = []
    seen: set[tuple[Expr, tuple[tuple[Expr, bool], ...]]] = set()
    stack: list[tuple[Expr, tuple[tuple[Expr, bool], ...]]] = [(e, ()) for e in expressions(nest)]
    while stack:
        e, path = stack.pop()
        if (e, path) in seen:
            continue
        seen.add((e, path))
        if isinstance(e, Read):
            found.append((e, _where(path, grid)))
        if isinstance(e, Call) and e.op == "select":
            test, a, b = e.args
            stack += [(test, path), (a, (*path, (test, True))), (b, (*path, (test, False)))]
        else:
            stack += [(x, path) for x in children(e)]
    return found


def _where(path: tuple[tuple[Expr, bool], ...], grid: dict[str, Any]) -> Any:
    result = None
    for test, holds in path:
        try:
            value = np.asarray(evaluate(test, grid)).astype(bool) == holds
        except NotLocalError:
            continue
        if value.ndim:
            result = value if result is None else result & value
    return result
