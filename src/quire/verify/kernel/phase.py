"""The statements of a phase → events: what is written where, under which loops, by whom.

`q.units` runs its body for runs `[a, b)` of the units of each outer one. A loop over `b − a` from
`a` on is one over all units, whatever the runs are; nothing else may depend on `a` and `b`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from quire.verify.decide import divmod_
from quire.verify.digits import Loop
from quire.verify.kernel.evaluate import LOCAL, Env, Evaluator, Lazy, Pointer, Span, fresh
from quire.verify.kernel.source import Apply, Do, Expr, Lambda, Let, Statement, Table
from quire.verify.poly import ONE, ZERO, Poly, atom_of, poly, variable
from quire.verify.value import NoMeaning


@attrs.frozen(eq=False)
class Unit:
    """The units being run: those of segment `segment`, runs [a, b) of `inner` in each outer `o`.
    `index` numbers a unit, once the loop over a run is entered."""

    segment: int
    inner: int
    o: Poly
    a: Poly
    b: Poly
    index: Poly | None


@attrs.frozen(eq=False)
class Event:
    """`for loops: pointer[where] = value`, by every worker or by the one that has the unit
    `unit.index`. `position` counts statements that are in no loop, or first in a unit's body: of
    two with one position it is not known which element comes first."""

    position: int
    call: int
    pointer: Pointer
    loops: tuple[Loop, ...]
    unit: Unit | None
    where: Callable[[], Poly]
    value: Callable[[], Any]


@attrs.frozen(eq=False)
class Attention:
    """A call of `q.attend`: its arguments by name, and what they are evaluated in."""

    position: int
    call: int
    pointer: Pointer
    args: dict[str, Expr]
    env: Env


ATTEND = (
    "outer", "group", "block", "parts", "q", "inner", "keys", "key_step", "values", "value_step",
    "width", "lo", "hi", "query", "key", "value", "part", "score",
)  # fmt: skip


class Collector:
    """Walks the statements of an epoch's phases in order."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluate = evaluator
        self.events: list[Event | Attention] = []
        self.pointers: list[Pointer] = []
        self._segments = self._call = self._position = 0
        self._base = 0

    def phase(self, body: Sequence[Statement], base: int, call: int) -> None:
        """The events of call number `call`, its pointers counted from `base`."""
        self._base, self._call = base, call
        self._run(body, {}, (), None)

    def _run(
        self, body: Sequence[Statement], env: Env, loops: tuple[Loop, ...], unit: Unit | None
    ) -> None:
        env = dict(env)
        for s in body:
            if unit is None and not loops:
                self._position += 1
            match s:
                case Let(name, value):
                    if not LOCAL.fullmatch(name) or name in env:
                        raise NoMeaning(f"the name {name}")
                    env[name] = self._let(name, value, dict(env))
                case Table(name, values):
                    env[name] = values
                case Do(Apply("q.each", (n, Lambda((word,), inner)))):
                    index, more, now = self._loop(n, env, unit)
                    self._run(inner, {**env, word: index}, (*loops, *more), now)
                case Do(Apply("q.units", (span, inner, chunk, Lambda(words, inside)))):
                    if unit is not None or loops:
                        raise NoMeaning("units within a loop")
                    self._units(env, span, inner, chunk, words, inside)
                case Do(Apply() as call):
                    self._write(call, env, loops, unit)
                case _:
                    raise NoMeaning(f"the statement {s} is not read")

    def _let(self, name: str, e: Expr, env: Env) -> Any:
        match e:
            case Apply("q.array", (slot,), kind):
                found = Pointer(self._base + self.evaluate.number(slot, {}), 0, kind, name)
            case Apply("q.scratch", (offset,), kind):
                found = Pointer(-self._call, self.evaluate.number(offset, {}), kind, name)
            case Apply("q.share", _):
                return self.evaluate.value(e, env)
            case _:
                return Lazy(lambda: self.evaluate.value(e, env))
        self.pointers.append(found)
        return found

    # --- loops -------------------------------------------------------------------------------

    def _loop(
        self, n: Expr, env: Env, unit: Unit | None
    ) -> tuple[Poly, tuple[Loop, ...], Unit | None]:
        """The index of a loop over `n`, what it adds to the loops, and the unit within it."""
        size = self.evaluate.poly(n, env)
        if unit is not None and unit.inner > 1 and atom_of(unit.b) in size.free:
            parts = size.split(atom_of(unit.b))
            count = parts[0].constant if parts else None
            if unit.index is not None or not count or size is not (unit.b - unit.a) * count:
                raise NoMeaning(f"a loop over {size} within a run of units")
            s = variable("s", [0], [unit.inner * count - 1])
            index = unit.o * unit.inner + divmod_(s, poly(count))[0]
            loop = (atom_of(s), poly(unit.inner * count))
            return s - unit.a * count, (loop,), attrs.evolve(unit, index=index)
        i = fresh("i", size)
        return i, () if i is ZERO else ((atom_of(i), size),), unit

    def _units(
        self, env: Env, share: Expr, inner: Expr, chunk: Expr, words: Any, body: Any
    ) -> None:
        span = self.evaluate.value(share, env)
        by = self.evaluate.number(inner, env)
        if not isinstance(span, Span) or by < 1 or self.evaluate.number(chunk, env) < 1:
            raise NoMeaning("units of no share")
        if span.units % by or len(words) != 3:
            raise NoMeaning(f"{span.units} units in runs of {by}")
        self._segments += 1
        o = fresh("o", poly(span.units // by))
        loops = () if o is ZERO else ((atom_of(o), poly(span.units // by)),)
        if by == 1:
            a, b, index = ZERO, ONE, o
        else:
            a = variable("a", [0], [by - 1])
            b = variable("b", [a + 1], [by])
            index = None
        unit = Unit(self._segments, by, o, a, b, index)
        env = {**env, **dict(zip(words, (o, a, b), strict=True))}
        for s in body:
            self._position += 1
            self._run_one(s, env, loops, unit)

    def _run_one(self, s: Statement, env: Env, loops: tuple[Loop, ...], unit: Unit) -> None:
        if isinstance(s, Table):
            env[s.name] = s.values  # type: ignore[index]
        else:
            self._run([s], env, loops, unit)

    # --- what writes -------------------------------------------------------------------------

    def _write(self, e: Apply, env: Env, loops: tuple[Loop, ...], unit: Unit | None) -> None:
        ev = self.evaluate
        match e.what, e.args:
            case "q.store", (pointer, at, value):
                self._event(pointer, env, loops, unit,
                            lambda: ev.poly(at, env), lambda: ev.value(value, env))  # fmt: skip
            case (("q.dot" | "q.dot_bf16"), args) if len(args) == 13:
                self._dot(args, env, loops, unit)
            case "q.topk", (n, k, largest, body, Lambda((r, j, m), puts)):
                place = fresh("r", ev.poly(k, env))
                more = () if place is ZERO else ((atom_of(place), ev.poly(k, env)),)
                text = str(ev.value(largest, env).op == "true")

                def chosen(part: str) -> Lazy:
                    return Lazy(lambda: self._chosen(part, n, body, env, place, text))

                here = {**env, r: place, j: chosen("indices"), m: chosen("values")}
                self._run(puts, here, (*loops, *more), unit)
            case "q.scan_sum", (n, body, Lambda((i, v), puts)):
                index, more, now = self._loop(n, env, unit)
                if now is not unit:
                    raise NoMeaning("a scan over a run of units")
                total = Lazy(lambda: self._prefix(body, env, index))
                self._run(puts, {**env, i: index, v: total}, (*loops, *more), unit)
            case "q.scan_prod", (n, body, Lambda((i, v), puts)):
                index, more, now = self._loop(n, env, unit)
                if now is not unit:
                    raise NoMeaning("a scan over a run of units")
                total = Lazy(lambda: self._row("cumprod.values", n, body, env, index))
                self._run(puts, {**env, i: index, v: total}, (*loops, *more), unit)
            case "q.merge", (out, at, step, *rest) if len(rest) == 6:
                width = ev.poly(rest[2], env)
                i = fresh("i", width)
                more = () if i is ZERO else ((atom_of(i), width),)
                self._event(
                    out, env, (*loops, *more), unit,
                    lambda: ev.poly(at, env) + i * ev.poly(step, env),
                    lambda: ev.memory.merged(rest, env, i),  # type: ignore[attr-defined]
                )  # fmt: skip
            case "q.attend", args if len(args) == len(ATTEND):
                if loops or unit is not None:
                    raise NoMeaning("attention within a loop")
                named: dict[str, Expr] = dict(zip(ATTEND, args, strict=True))
                pointer = ev.pointer(named["parts"], env)
                self.events.append(Attention(self._position, self._call, pointer, named, env))
            case _:
                raise NoMeaning(f"the call {e.what} of {len(e.args)} arguments is not read")

    def _event(
        self, pointer: Expr, env: Env, loops: tuple[Loop, ...], unit: Unit | None, where: Any,
        value: Any,
    ) -> None:  # fmt: skip
        if unit is not None and unit.index is None:
            raise NoMeaning("a statement that every run of a segment repeats")
        to = self.evaluate.pointer(pointer, env)
        self.events.append(Event(self._position, self._call, to, loops, unit, where, value))

    def _dot(
        self, args: tuple[Expr, ...], env: Env, loops: tuple[Loop, ...], unit: Unit | None
    ) -> None:
        """out[at + a·out_a + b·out_b] = Σ_k w[w_at + b·w_step + k] · x[x_at + a·x_step + k]"""
        out, at, out_a, out_b, w, w_at, w_step, bs, x, x_at, x_step, as_, k = args
        ev = self.evaluate
        b, rows, unit = self._loop(bs, env, unit)
        a, columns, unit = self._loop(as_, env, unit)

        def value() -> Any:
            return ev.memory.product(  # type: ignore[attr-defined]
                (ev.pointer(w, env), ev.poly(w_at, env), b, ev.poly(w_step, env)),
                (ev.pointer(x, env), ev.poly(x_at, env), a, ev.poly(x_step, env)),
                ev.poly(k, env),
            )

        self._event(
            out, env, (*loops, *rows, *columns), unit,
            lambda: ev.poly(at, env) + a * ev.poly(out_a, env) + b * ev.poly(out_b, env), value,
        )  # fmt: skip

    def _chosen(self, part: str, n: Expr, body: Expr, env: Env, place: Poly, text: str) -> Any:
        """The `place`-th largest of a row, or where it is: a function of the row."""
        return self._row(f"order.{part}", n, body, env, place, text)

    def _row(self, name: str, n: Expr, body: Expr, env: Env, place: Poly, *more: str) -> Any:
        size = self.evaluate.poly(n, env)
        return self.evaluate.memory.row(  # type: ignore[attr-defined]
            name, size, lambda j: self.evaluate.call(body, env, (j,)), place, *more
        )

    def _prefix(self, body: Expr, env: Env, index: Poly) -> Any:
        return self.evaluate.memory.prefix(  # type: ignore[attr-defined]
            index, lambda j: self.evaluate.call(body, env, (j,))
        )
