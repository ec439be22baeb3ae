"""`step` → epochs: what every worker calls between two barriers.

Control flow in `step` depends only on numbers that are the same for all workers, and barriers stand
nowhere else: so all workers meet the same barriers in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from quire.verify.kernel.source import (
    Apply,
    Binary,
    Do,
    Expr,
    For,
    If,
    Name,
    Number,
    Statement,
    walk,
)
from quire.verify.value import NoMeaning

LIMIT = 100_000
"""Calls that a script may have."""


@attrs.frozen
class CallOf:
    """A function called with pointers counted from `base`."""

    function: str
    base: int


@attrs.frozen
class Epoch:
    """What runs between two barriers, in order."""

    phases: tuple[CallOf, ...]
    ahead: tuple[CallOf, ...]


class _Run:
    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        self.base = 0
        self.epochs: list[Epoch] = []
        self.phases: list[CallOf] = []
        self.ahead: list[CallOf] = []
        self.calls = 0

    def run(self, body: Sequence[Statement], env: Mapping[str, int]) -> None:
        for statement in body:
            match statement:
                case Do(Apply(what, args)):
                    self._call(what, args, env)
                case For(name, count, inner):
                    for k in range(self._number(count, env)):
                        self.run(inner, {**env, name: k})
                case If(Binary("<", left, right), yes, no):
                    holds = self._number(left, env) < self._number(right, env)
                    self.run(yes if holds else no, env)
                case _:
                    raise NoMeaning(f"step: {statement} is not read")

    def _call(self, what: str, args: Sequence[Expr], env: Mapping[str, int]) -> None:
        self.calls += 1
        if self.calls > LIMIT:
            raise NoMeaning("step: too long")
        match what, args:
            case "q.enter", ():
                pass
            case "q.skip", (n,):
                self.base += self._number(n, env)
            case "q.wait", ():
                self.epochs.append(Epoch(tuple(self.phases), tuple(self.ahead)))
                self.phases, self.ahead = [], []
            case _, (Name("q"),) if what.startswith("phase_"):
                self.phases.append(CallOf(what, self.base))
            case _, (Name("q"),) if what.startswith("ahead_"):
                self.ahead.append(CallOf(what, self.base))
            case _:
                raise NoMeaning(f"step: the call {what} is not read")

    def _number(self, e: Expr, env: Mapping[str, int]) -> int:
        match e:
            case Number(int(value)):
                return value
            case Name(word) if word in env:
                return env[word]
            case Apply("q.repeats", (Number(int(k)),)) if k < len(self.counts):
                return self.counts[k]
            case Binary("+", a, b):
                return self._number(a, env) + self._number(b, env)
        raise NoMeaning(f"step: the number {e} is not read")


def epochs(functions: Mapping[str, Sequence[Statement]], counts: Sequence[int]) -> list[Epoch]:
    """The epochs of `step`. Raises NoMeaning, also if a barrier stands outside of it."""
    for name, body in functions.items():
        if name != "step" and any(w in ("q.wait", "q.skip", "q.enter") for w in called(body)):
            raise NoMeaning(f"{name}: a barrier outside of step")
    run = _Run(counts)
    run.run(functions["step"], {})
    if run.phases:
        run.epochs.append(Epoch(tuple(run.phases), ()))
    return run.epochs


def called(body: Sequence[Statement]) -> set[str]:
    """The names of all calls within statements."""
    return {x.what for x in walk(tuple(body)) if isinstance(x, Apply)}
