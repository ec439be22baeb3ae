"""Nests as C++: whole ones, and the elements of one that a segment's units hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from quire.kernel import index as ix
from quire.kernel.analysis import address, free, plain_call
from quire.kernel.ir import (
    DOT,
    AnyNest,
    Attend,
    Call,
    Expr,
    Length,
    Merge,
    Nest,
    Num,
    Read,
    Scan,
    TopK,
    Var,
    kind,
    rewrite,
)
from quire.kernel.render.printer import Names, Printer, loop
from quire.kernel.units import Share, weights_of

Lines = list[str]
Env = dict[str, str]


@attrs.frozen
class Row:
    """Elements `start + t·step` for t < count along the flattened element axes."""

    axes: tuple[Var, ...]
    start: str
    step: int
    count: str


def whole(names: Names, nest: AnyNest) -> Lines:
    """All of a nest, by one worker."""
    match nest:
        case Nest() if (plan := dot_plan(nest, ())) is not None:
            row = Row((plan.row,), "0", 1, names.size(plan.row.size))
            return _dot(names, nest, plan, row)
        case Nest() | Merge() | TopK() | Scan():
            axes = _loops(nest)
            return _nested(names, axes, {}, lambda env: _element(names, nest, env))
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
            return _dot(names, nest, plan, row)
    rest = [a for a in _loops(nest) if a not in share.axes]
    if not share.axes:
        return _nested(names, rest, {}, lambda env: _element(names, nest, env))

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

    return _nested(names, rest, {}, run)


def _loops(nest: AnyNest) -> tuple[Var, ...]:
    """The axes that a loop runs over around one element of a nest."""
    if isinstance(nest, Merge):
        return nest.rows
    if isinstance(nest, Scan):
        return tuple(a for a in nest.axes if a != nest.over)
    return nest.axes


def _nested(names: Names, axes: Sequence[Var], env: Env, body: Callable[[Env], Lines]) -> Lines:
    if not axes:
        return body(env)
    head, rest = axes[0], axes[1:]
    return loop(names, head.size, lambda i: _nested(names, rest, {**env, head.name: i}, body))


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


# --- contractions ---------------------------------------------------------------------------


@attrs.frozen
class DotPlan:
    """out[a, row] = Σ_k w[row, k] · x[a, k]; `column` is the axis a, if there is one."""

    w: Read
    x: Read
    row: Var
    column: Var | None


def dot_plan(nest: Nest, elements: Sequence[Var]) -> DotPlan | None:
    """How to run a contraction with the vector kernel, its rows along `elements`."""
    if nest.fold != "sum" or not isinstance(nest.value, Call) or nest.value.op != "mul":
        return None
    a, b = nest.value.args
    if not (isinstance(a, Read) and isinstance(b, Read)):
        return None
    w = weights_of(nest) or b
    x = a if w is b else b
    if x.buffer.kind != "float" or x.buffer.dtype.itemsize != 4 or w.buffer.kind != "float":
        return None
    if x.buffer.scheme or not (_flat(w, nest.over) and _flat(x, nest.over)):
        return None
    out = Read(nest.out, nest.at)
    if elements and len(elements) != 1:
        return None
    rows = [
        v
        for v in (elements or nest.axes[::-1])
        if isinstance(v.size, int)
        and factor(w, v) is not None
        and factor(out, v) is not None
        and v not in _vars(x)
    ]
    if not rows:
        return None
    columns = [
        v
        for v in nest.axes
        if v is not rows[0]
        and v not in elements
        and v not in _vars(w)
        and factor(x, v) is not None
        and factor(out, v) is not None
    ]
    columns.sort(key=lambda v: v.size if isinstance(v.size, int) else 1 << 30)
    return DotPlan(w, x, rows[0], columns[-1] if columns else None)


def _vars(e: Expr) -> set[Var]:
    return free(e)


def factor(read: Read, v: Var) -> int | None:
    """How far apart the elements along `v` lie; None where that is no constant."""
    terms = ix._terms(address(read))
    by = terms.get(v)
    if by is None or any(t != v and v in free(t) for t in terms):
        return None
    return by


def _flat(read: Read, over: Sequence[Var]) -> bool:
    """Whether the elements over `over` lie side by side, in row-major order."""
    step = 1
    for v in reversed(over):
        if not isinstance(v.size, int) and v is not over[0]:
            return False
        if factor(read, v) != step:
            return False
        step *= v.size if isinstance(v.size, int) else 1
    return True


def _dot(names: Names, nest: Nest, plan: DotPlan, row: Row) -> Lines:
    out = Read(nest.out, nest.at)
    others = [a for a in nest.axes if a not in (plan.row, plan.column)]
    zero: dict[str, Expr] = {v.name: ix.ZERO for v in nest.over}
    if plan.column is not None:
        zero[plan.column.name] = ix.ZERO
    column = plan.column
    depth = " * ".join(names.size(v.size) for v in nest.over)

    def call(env: Env) -> Lines:
        p = Printer(names, {**env, plan.row.name: f"({row.start})"})

        def at(read: Read) -> str:
            return p.text(ix.substitute(address(read), zero))

        steps = {
            "out_a": factor(out, column) if column else 0,
            "out_b": (factor(out, plan.row) or 0) * row.step,
            "w": (factor(plan.w, plan.row) or 0) * row.step,
            "x": factor(plan.x, column) if column else 0,
        }
        return [
            f"q.dot({names.buffer(nest.out)}, {at(out)}, {steps['out_a']}, {steps['out_b']}, "
            f"{names.buffer(plan.w.buffer)}, {at(plan.w)}, {steps['w']}, {row.count}, "
            f"{names.buffer(plan.x.buffer)}, {at(plan.x)}, {steps['x']}, "
            f"{names.size(column.size) if column else 1}, {depth});"
        ]

    return _nested(names, others, {}, call)


# --- attention ------------------------------------------------------------------------------


def attend(names: Names, nest: Attend) -> Lines:
    """Groups of queries that share keys are split from those that do not."""
    outer: list[tuple[Var, int]] = []  # an axis, and how many of its indices share keys
    inner: list[tuple[Var, int]] = []
    shared = _vars(nest.keys) | _vars(nest.values)
    for v in nest.rows:
        if v not in shared:
            inner.append((v, 0))
            continue
        group = _group(v, nest)
        outer.append((v, group))
        if group > 1:
            inner.append((v, group))
    u, g, j, d = (names.fresh(s) for s in ("u", "g", "j", "d"))
    env = _row_env(names, outer, inner, u, g)
    zero: dict[str, Expr] = {
        nest.inner.name: ix.ZERO, nest.width.name: ix.ZERO, nest.key.name: ix.ZERO,
    }  # fmt: skip

    def text(e: Expr, more: Mapping[str, str] | None = None) -> str:
        p = Printer(names, {**env, **(more or {})})
        return p.text(e)

    def at(read: Expr) -> str:
        assert isinstance(read, Read)
        return text(ix.substitute(address(read), zero))

    keys, values, query = nest.keys, nest.values, nest.query
    assert isinstance(keys, Read) and isinstance(values, Read) and isinstance(query, Read)
    score = rewrite(
        nest.score, lambda x: Var("$dot", 1) if x == Call(DOT, ()) else None, plain_call
    )
    if nest.live != Num(True):
        score = Call("select", (nest.live, score, Num(float("-inf"))))
    body = text(score, {nest.key.name: j, "$dot": d})
    groups = " * ".join(names.size(v.size) if not k else str(k) for v, k in inner) or "1"
    outers = (
        " * ".join(
            names.size(v.size) if k <= 1 else f"({names.size(v.size)} / {k})" for v, k in outer
        )
        or "1"
    )
    part = address(Read(nest.parts, (*nest.rows, ix.ZERO, ix.ZERO)))
    head = f"[&](auto {u}, auto {g}) {{ (void){u}; (void){g}; return index_t("
    return [
        f"q.attend({outers}, {groups}, {nest.block}, {names.buffer(nest.parts)}, "
        f"{names.buffer(query.buffer)}, {names.size(nest.inner.size)}, "
        f"{names.buffer(keys.buffer)}, {factor(keys, nest.key)}, "
        f"{names.buffer(values.buffer)}, {factor(values, nest.key)}, "
        f"{names.size(nest.width.size)},",
        f"  {head}{text(nest.lo)}); }},",
        f"  {head}{text(nest.hi)}); }},",
        f"  {head}{at(query)}); }},",
        f"  {head}{at(keys)}); }},",
        f"  {head}{at(values)}); }},",
        f"  {head}{text(part)}); }},",
        f"  [&](auto {u}, auto {g}, auto {j}, auto {d}) {{ (void){u}; (void){g}; (void){j}; "
        f"return real({body}); }});",
    ]


def _group(v: Var, nest: Attend) -> int:
    """How many neighbours along `v` read the same keys and values."""
    found: set[int] = set()
    for read in (nest.keys, nest.values):
        stack: list[Expr] = [read]
        while stack:
            e = stack.pop()
            match e:
                case Call("idiv", (Var(name, _), Num(by))) if name == v.name:
                    found.add(int(by))
                case Var(name, _) if name == v.name:
                    return 1
                case Read(_, at):
                    stack.extend(at)
                case Call(_, args):
                    stack.extend(args)
    size = v.size
    if len(found) == 1 and isinstance(size, int) and size % (by := found.pop()) == 0:
        return by
    return 1


def _row_env(
    names: Names,
    outer: Sequence[tuple[Var, int]],
    inner: Sequence[tuple[Var, int]],
    u: str,
    g: str,
) -> dict[str, str]:
    """Each row variable in terms of the outer and the inner unit."""
    env: dict[str, str] = {}
    left = u
    for k in range(len(outer) - 1, -1, -1):
        v, group = outer[k]
        size = names.size(v.size) if group <= 1 else f"({names.size(v.size)} / {group})"
        here = f"({left} % {size})" if k else left
        env[v.name] = here if group <= 1 else f"({here} * {group})"
        left = f"({left} / {size})"
    left = g
    for k in range(len(inner) - 1, -1, -1):
        v, group = inner[k]
        size = str(group) if group else names.size(v.size)
        here = f"({left} % {size})" if k else left
        env[v.name] = f"({env[v.name]} + {here})" if group else here
        left = f"({left} / {size})"
    return env


__all__ = ["Length", "attend", "part", "whole"]
