"""Emitted source + tables + program → certificate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from quire.capture.program import Program
from quire.verify import decide, laws
from quire.verify.certificate import Certificate, program_hash
from quire.verify.check import versions
from quire.verify.claims import Claim, Verdict
from quire.verify.decide import Premises
from quire.verify.depth import room
from quire.verify.exact import ExactRun
from quire.verify.kernel.again import Again
from quire.verify.kernel.content import decode
from quire.verify.kernel.cover import Wrong
from quire.verify.kernel.evaluate import Env, premises_of
from quire.verify.kernel.match import Graph, assume_ranges
from quire.verify.kernel.memory import Epoch
from quire.verify.kernel.phase import Collector
from quire.verify.kernel.run.exact import exact_kernel
from quire.verify.kernel.run.witness import search
from quire.verify.kernel.script import CallOf, epochs
from quire.verify.kernel.source import Apply, Do, Expr, If, Let, Statement, functions
from quire.verify.kernel.state import State
from quire.verify.kernel.tables import Tables
from quire.verify.poly import ONE, atom_of, poly, product
from quire.verify.prove import claims_of, ran, reset
from quire.verify.rounding import statements
from quire.verify.sizes import Sizes
from quire.verify.steps import Step
from quire.verify.term.core import RANGES
from quire.verify.value import NoMeaning, NotShown, as_bool

OVER = "any number of threads"


@room()
def prove_kernel(
    program: Program,
    source: str,
    tables: Tables,
    *,
    solvers: tuple[str, ...] = ("z3",),
    seconds: float = 10.0,
    limit: float = 300.0,
    exact: bool = False,
    witness: bool = True,
) -> Certificate:
    """A certificate that `source`, run with `tables`, computes what `program` does: for all inputs
    and all lengths up to `tables.longest`, for any number of workers. `seconds` are a solver's for
    one text, `limit` those of the whole search: what takes longer is unknown. With `exact` both are
    run in a finite field as well; with `witness` a run that differs is sought where there is no
    proof, and refutes."""
    start = time.perf_counter()
    reset()
    log, conditions = decide.Log(), {}
    decide.LOGS.append(log)
    laws.CLAIMS.append(conditions)
    RANGES.clear()
    reason, claims, steps = "", {}, []
    verdict: Verdict = "proved"
    ranges: dict[str, tuple[int, int]] = {}
    try:
        graph = _graph(program, tables)
        ranges.update(RANGES)
        state = State(graph, tables, limit)
        steps = _run(state, source, tables)
        claims = state.claims
    except Wrong as error:
        reason, verdict = str(error), "refuted"
    except (NoMeaning, NotShown, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
        reason = f"the source is not one that can be read: {error!r}"
    finally:
        decide.LOGS.remove(log)
        laws.CLAIMS.remove(conditions)
        RANGES.clear()
    bad = next((s for s in steps if s.verdict != "equal"), None)
    if bad is not None and not reason:
        reason = f"{bad.text}: {bad.reason}"
    made = claims_of(log, conditions, steps, solvers, seconds, tuple(claims), OVER)
    if not reason:
        open_ = [c for c in made if c.verdict != "proved"]
        reason = f"{open_[0].id}: {open_[0].reason}" if open_ else ""
    found = search(program, source, tables, ranges) if reason and witness else None
    if found is not None or verdict == "refuted":
        how = "found" if found is None else found.script
        reason = reason if found is None else f"{found.found}; {reason}"
        verdict = "refuted"
        made += (Claim("w", "witness", reason, how, verdict="refuted", reason=reason),)
    elif reason:
        verdict = "unknown"
    if exact:
        made, verdict, reason = _ran(
            exact_kernel(program, source, tables, ranges), made, verdict, reason
        )
    used = {name: versions()[name] for name in solvers}
    sizes = tuple((str(s.name), s.lo, tables.longest[str(s.name)]) for s in program.symbols)
    return Certificate(
        verdict, reason, program_hash(program), tables.text(), source, made, used,
        rounding=rounding(program), sizes=sizes,
        seconds=round(time.perf_counter() - start, 3), over=OVER,
    )  # fmt: skip


def rounding(program: Program) -> tuple[tuple[str, str], ...]:
    """What is said of each output's rounding: sums are in another order than torch's."""
    try:
        return statements(program, same=False, finest=torch.float32)
    except NoMeaning as error:
        return (("outputs", f"no bound: {error}"),)


def _ran(
    run: ExactRun, claims: tuple[Claim, ...], verdict: Verdict, reason: str
) -> tuple[tuple[Claim, ...], Verdict, str]:
    """The claims with an exact run's. One that differs is no refutation, since the field knows few
    laws (none of log): it makes the verdict unknown."""
    claims, now, why = ran(run, claims, verdict, reason)
    if now == "refuted" and verdict != "refuted":
        last = attrs.evolve(claims[-1], verdict="unknown")
        return (*claims[:-1], last), "unknown", f"{reason}; {why}" if reason else why
    return claims, now, why if verdict != "refuted" else reason


def _graph(program: Program, tables: Tables) -> Graph:
    sizes = Sizes(program)
    for name, size in sizes.symbols.items():
        # One that has a single value stays a variable: folded away, a dim would lose its index.
        atom_of(size).upper = [poly(max(2, tables.longest[name]))]
    graph = Graph(program, sizes, tables)
    assume_ranges(graph)
    return graph


def _run(state: State, source: str, tables: Tables) -> list[Step]:
    code = functions(source)
    calls = 1
    script = epochs(code, tables.repeats)
    again = Again(state, code)
    fetched: set[Any] = set()
    for number, between in enumerate(script):
        try:
            form, pointers = again.form(between.phases)
            epoch = Epoch(state)
            if not again.done(form, pointers, calls):
                for k, call in enumerate(between.phases):
                    epoch.collector.phase(code[call.function], call.base, calls + k)
                epoch.run()
                again.keep(form, pointers, epoch, calls)
            calls += len(between.phases)
            for call in between.ahead:
                ahead, _ = again.form((call,))
                if ahead not in fetched:
                    fetched.add(ahead)
                    _prefetches(state, epoch, code[call.function], call)
        except (NoMeaning, NotShown, RecursionError) as error:
            names = ", ".join(c.function for c in between.phases)
            raise type(error)(f"between barriers {number} ({names}): {error}") from error
    state.claim("order", f"all workers meet the same {len(script)} barriers")
    steps = [Step(-1, f"{f.buffer} holds {f.node}", "equal") for f in state.found]
    steps += [Step(0, label, "differs" if why else "equal", why) for label, why in state.outputs()]
    return steps


def _prefetches(state: State, epoch: Epoch, body: Sequence[Statement], call: CallOf) -> None:
    """Only weights are fetched ahead: they never change."""
    reader = Collector(epoch.evaluator)
    env: dict[str, Any] = {}
    for s in body:
        match s:
            case Let(name, Apply("q.array", _)):
                reader.phase([s], call.base, 0)
                env[name] = reader.pointers[-1]
                state.check_type(env[name])
            case Let(name, Apply("q.share", _) as share):
                env[name] = epoch.evaluator.value(share, env)
            case Do(Apply("q.prefetch", (array, at, _))):
                _prefetch(state, epoch, array, at, env, ())
            case If(condition, (Do(Apply("q.prefetch", (array, at, _))),), ()):
                path = premises_of(as_bool(epoch.evaluator.value(condition, env)))
                _prefetch(state, epoch, array, at, env, path)
            case _:
                raise NoMeaning(f"{call.function}: {s} is not read")
    if body:
        state.claim("order", f"{call.function}: only weights are fetched ahead")


def _prefetch(state: State, epoch: Epoch, array: Expr, at: Expr, env: Env, path: Premises) -> None:
    pointer = epoch.evaluator.pointer(array, env)
    b = state.buffer(pointer)
    if b.role != "state":
        raise Wrong(f"{b.name} is fetched ahead, and is no weight")
    shape = state.shape(state.key(pointer))
    first = epoch.evaluator.poly(at, env, path)
    what = f"what is fetched ahead of {b.name}"
    decode(first, [product(shape)], [ONE], path, what)
