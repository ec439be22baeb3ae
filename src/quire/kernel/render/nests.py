"""Nests as C++: whole ones, and the elements of one that a segment's units hold."""

from __future__ import annotations

from collections.abc import Sequence

from quire.kernel import index as ix
from quire.kernel.analysis import address
from quire.kernel.ir import (
    AnyNest,
    Expr,
    Merge,
    Nest,
    Read,
    Scan,
    TopK,
    Var,
    kind,
)
from quire.kernel.render.contraction import Row, dot, dot_plan
from quire.kernel.render.printer import Env, Lines, Names, Printer, loop, nested
from quire.kernel.segments import Share


def whole(names: Names, nest: AnyNest) -> Lines:
    """All of a nest, by one worker."""
    match nest:
        case Nest() if (plan := dot_plan(nest, ())) is not None:
            row = Row((plan.row,), "0", 1, names.size(plan.row.size))
            return dot(names, nest, plan, row)
        case Nest() | Merge() | TopK() | Scan():
            axes = _loops(nest)
            return nested(names, axes, {}, lambda env: _element(names, nest, env))
    raise TypeError(nest)


def part(names: Names, share: Share, o: str, r0: str, r1: str) -> Lines:
    """The elements of `share` in units r0 … r1 of the outer unit `o`."""
    base = _plus(share.base, (o, share.outer_step))
    count, step = _progression(share.offsets)
    if step == 1 and share.inner_step == count and count > 1:
        start = _plus(base, (r0, count))
        return _run(names, share, Row(share.axes, start, 1, f"({r1} - {r0}) * {count}"))
    start = _plus(base, (r0, share.inner_step))
    run = f"{r1} - {r0}"
    if count == 1:
        return _run(names, share, Row(share.axes, start, share.inner_step, run))
    if count:
        return loop(
            names,
            count,
            lambda f: _run(
                names, share, Row(share.axes, _plus(start, (f, step)), share.inner_step, run)
            ),
            "f",
        )
    table = names.fresh("table")
    values = ", ".join(map(str, share.offsets))
    return [
        f"static constexpr index_t {table}[] = {{{values}}};",
        *loop(
            names,
            len(share.offsets),
            lambda f: _run(
                names, share, Row(share.axes, f"{start} + {table}[{f}]", share.inner_step, run)
            ),
            "f",
        ),
    ]


def _progression(offsets: tuple[int, ...]) -> tuple[int, int]:
    """(count, step) of an arithmetic progression from 0; count 0 for none."""
    if len(offsets) == 1:
        return 1, 0
    step = offsets[1] - offsets[0]
    regular = all(v == k * step for k, v in enumerate(offsets))
    return (len(offsets), step) if regular else (0, 0)


def _plus(start: int | str, *terms: tuple[str, int]) -> str:
    parts = [] if start in (0, "0") else [str(start)]
    parts += [name if by == 1 else f"{name} * {by}" for name, by in terms if by]
    return " + ".join(parts) or "0"


def _run(names: Names, share: Share, row: Row) -> Lines:
    nest = share.nest
    if isinstance(nest, Nest):
        plan = dot_plan(nest, share.axes)
        if plan is not None and len(share.axes) == 1:
            return dot(names, nest, plan, row)
    rest = [a for a in _loops(nest) if a not in share.axes]
    if not share.axes:
        return nested(names, rest, {}, lambda env: _element(names, nest, env))

    def run(env: Env) -> Lines:
        def body(t: str) -> Lines:
            e = names.fresh("e")
            lines = [f"const auto {e} = {_plus(row.start, (t, row.step))};"]
            inner = dict(env)
            left = e
            for k in range(len(share.axes) - 1, -1, -1):
                axis = share.axes[k]
                inner[axis.name] = f"({left} % {axis.size})" if k else left
                left = f"({left} / {axis.size})"
            return lines + _element(names, nest, inner)

        index = names.fresh("t")
        return [
            f"q.each({row.count}, [&](auto {index}) {{",
            *("  " + line for line in body(index)),
            "});",
        ]

    return nested(names, rest, {}, run)


def _loops(nest: AnyNest) -> tuple[Var, ...]:
    """The axes that a loop runs over around one element of a nest."""
    if isinstance(nest, Merge):
        return nest.rows
    if isinstance(nest, Scan):
        return tuple(a for a in nest.axes if a != nest.over)
    return nest.axes


def _element(names: Names, nest: AnyNest, env: Env) -> Lines:
    """The statement that computes one element (one row, for the nests that make rows)."""
    match nest:
        case Nest(out, _, at, value, None, _):
            p = Printer(names, env)
            text = p.statement(value)
            place = p.text(address(Read(out, at)))
            return [*p.lines, f"q.store({names.buffer(out)}, {place}, {text});"]
        case Nest(out, _, at, value, fold, over):
            lines, text = _fold(names, str(fold), over, value, env)
            place = Printer(names, env).text(address(Read(out, at)))
            return [*lines, f"q.store({names.buffer(out)}, {place}, {text});"]
        case TopK():
            return _topk(names, nest, env)
        case Scan():
            return _scan(names, nest, env)
        case Merge():
            return _merge(names, nest, env)
    raise TypeError(nest)


_FOLDS = {"sum": "sum", "max": "max", "min": "min", "prod": "prod", "or": "any", "and": "all"}


def _fold(
    names: Names, monoid: str, over: Sequence[Var], value: Expr, env: Env
) -> tuple[Lines, str]:
    hook = _FOLDS[monoid]
    if monoid == "sum" and kind(value) != "float":
        hook = "isum"
    inner = dict(env)
    heads = []
    for v in over:
        index = names.fresh("k")
        inner[v.name] = index
        heads.append((names.size(v.size), index))
    p = Printer(names, inner)
    text = p.statement(value)
    body = " ".join([*p.lines, f"return {text};"])
    for size, index in reversed(heads):
        body = f"return q.{hook}({size}, [&](auto {index}) {{ {body} }});"
    return [], body.removeprefix("return ").removesuffix(";")


def _topk(names: Names, nest: TopK, env: Env) -> Lines:
    index, rank, at, most = (names.fresh(s) for s in ("k", "r", "j", "m"))
    p = Printer(names, {**env, nest.over.name: index})
    body = p.statement(nest.value)
    slot = Var("$rank", nest.k)
    q = Printer(names, {**env, "$rank": rank})
    place = q.text(address(Read(nest.out, (*nest.axes, slot))))
    return [
        f"q.topk({names.size(nest.over.size)}, {nest.k}, {'true' if nest.largest else 'false'},",
        f"  [&](auto {index}) {{ {' '.join(p.lines)} return {body}; }},",
        f"  [&](auto {rank}, auto {at}, auto {most}) {{",
        f"    q.store({names.buffer(nest.out)}, {place}, {most});",
        f"    q.store({names.buffer(nest.where)}, {place}, {at});",
        "  });",
    ]


def _scan(names: Names, nest: Scan, env: Env) -> Lines:
    index, value = names.fresh("k"), names.fresh("m")
    p = Printer(names, {**env, nest.over.name: index})
    body = p.statement(nest.value)
    place = Printer(names, {**env, nest.over.name: index}).text(address(Read(nest.out, nest.axes)))
    return [
        f"q.scan_{nest.fold}({names.size(nest.over.size)},",
        f"  [&](auto {index}) {{ {' '.join(p.lines)} return {body}; }},",
        f"  [&](auto {index}, auto {value}) {{ q.store({names.buffer(nest.out)}, {place}, "
        f"{value}); }});",
    ]


def _merge(names: Names, nest: Merge, env: Env) -> Lines:
    p = Printer(names, env)
    zero: dict[str, Expr] = {nest.width.name: ix.ZERO}
    out = ix.substitute(address(Read(nest.out, (*nest.rows, nest.width))), zero)
    parts = address(Read(nest.parts, (*nest.rows, ix.ZERO, ix.ZERO)))
    return [
        f"q.merge({names.buffer(nest.out)}, {p.text(out)}, 1, {names.buffer(nest.parts)}, "
        f"{p.text(parts)}, {names.size(nest.width.size)}, {nest.block}, {p.text(nest.lo)}, "
        f"{p.text(nest.hi)});"
    ]
