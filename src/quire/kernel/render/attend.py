"""Attention as one call: queries that share keys together, a block of keys at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire.kernel import index as ix
from quire.kernel.analysis import address, free, plain_call
from quire.kernel.ir import DOT, Attend, Call, Expr, Num, Read, Var, rewrite
from quire.kernel.render.contraction import factor
from quire.kernel.render.printer import Lines, Names, Printer


def attend(names: Names, nest: Attend) -> Lines:
    """Groups of queries that share keys are split from those that do not."""
    outer: list[tuple[Var, int]] = []  # an axis, and how many of its indices share keys
    inner: list[tuple[Var, int]] = []
    shared = free(nest.keys) | free(nest.values)
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
