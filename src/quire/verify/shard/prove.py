"""Program + the text that ranks run → certificate."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from quire.verify import decide, laws
from quire.verify.certificate import Certificate, program_hash
from quire.verify.check import versions
from quire.verify.claims import Claim
from quire.verify.depth import room
from quire.verify.prove import claims_of, ran, reset
from quire.verify.shard.applied import Applied
from quire.verify.shard.attend import Call
from quire.verify.shard.exact import REDUCTION, exact_shard_run
from quire.verify.shard.free import cases
from quire.verify.shard.gradient import gradient_claims
from quire.verify.shard.laws import SHARD_LAWS
from quire.verify.shard.length import Length
from quire.verify.shard.order import Order, edges
from quire.verify.shard.task import Hooks, Runs, Task
from quire.verify.shard.ways import ATTENTION, shown
from quire.verify.steps import Step
from quire.verify.term.core import RANGES
from quire.verify.value import NoMeaning, NotShown

_FAILS = (TypeError, ValueError, KeyError, IndexError, AttributeError, NameError, SyntaxError)
"""What a text that cannot be read may raise."""


@room()
def prove_task(
    task: Task,
    hooks: Hooks,
    *,
    exact: bool = False,
    refute: bool = True,
    solvers: tuple[str, ...] = ("z3",),
    seconds: float = 10.0,
) -> Certificate:
    """The certificate. With `exact` a training step of all ranks is run in a finite field as well,
    where the program is small enough; with `refute` also where the proof fails, as a run that
    differs refutes."""
    start = time.perf_counter()
    reset()
    RANGES.clear()
    log, conditions = decide.Log(), {}
    decide.LOGS.append(log)
    laws.CLAIMS.append(conditions)
    applied, steps, ways, tables, reason = None, [], (), (), ""
    try:
        applied = Applied(task)
        steps = applied.steps
        applied.run()
        ways = _ways(applied.attention.calls, hooks)
    except (NoMeaning, NotShown, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    except _FAILS as error:
        reason = f"the applied program is not one that can be read: {error!r}"
    finally:
        if applied is not None:
            tables = _tables(applied.hooks.orders, hooks)
        RANGES.clear()
        decide.LOGS.remove(log)
        laws.CLAIMS.remove(conditions)
    bad = next((s for s in steps if s.line == 0 and s.verdict != "equal"), None)
    if bad is not None and not reason:
        first = next((s for s in steps if s.verdict != "equal"), bad)
        reason = f"{first.text}: {first.reason or first.verdict}"
    base = claims_of(log, conditions, [], solvers, seconds, more=SHARD_LAWS)
    own = (*tables, *_texts(hooks), *ways)
    before = tuple(c.id for c in (*base, *own))
    equal = _equalities(steps, task, before)
    gradients = gradient_claims(task, hooks.reduction, tuple(c.id for c in equal), reason)
    claims = (*base, *own, *equal, *gradients)
    if not reason:
        open_ = [c for c in claims if c.verdict != "proved"]
        reason = f"{open_[0].id}: {open_[0].reason}" if open_ else ""
    verdict: Any = "unknown" if reason else "proved"
    if exact or (reason and refute):
        one = task.at([low for _, low, _ in task.ranges]) if task.ranges else task
        texts = {**hooks.texts, REDUCTION: hooks.reduction}
        run = exact_shard_run(
            one.program, one.sources, one.names, texts, ranks=one.ranks, outputs=one.outputs,
            lengths=one.lengths,
        )  # fmt: skip
        if exact or run.equal is False:
            claims, verdict, reason = ran(run, claims, verdict, reason)
    used = {name: versions()[name] for name in solvers}
    text = "\n".join(f"# {s.module or 'the root'}, call {s.call}\n{s.text}" for s in task.sources)
    return Certificate(
        verdict, reason, program_hash(task.program), task.plan, text, claims, used,
        rounding=(("outputs", "no bound: the ranks' sums are joined in another order"),),
        sizes=tuple((str(name), low, high) for name, low, high in task.ranges),
        seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


def _equalities(steps: Sequence[Step], task: Task, before: tuple[str, ...]) -> tuple[Claim, ...]:
    made: list[Claim] = []
    rule = "same normal form, integers and conditions by the solver"
    free = " and lengths" if task.ranges else ""
    for s in steps:
        if s.verdict != "equal" and s.line:
            continue
        text = f"{s.text} equals the model's on each of {task.ranks} ranks, for all inputs{free}"
        made.append(
            Claim(
                f"e{len(made)}",
                "equality",
                text,
                rule,
                "",
                () if made else before,
                "proved" if s.verdict == "equal" else "unknown",
                s.reason,
            )
        )
    return tuple(made)


def _tables(orders: Mapping[Order, None], hooks: Hooks) -> tuple[Claim, ...]:
    """That the runtime's rows are where `Order` says, each once."""
    made = []
    for k, order in enumerate(orders):
        why = ""
        try:
            for one in cases(order):
                why = why or _table_differs(one, hooks.runs(one.size, one.ranks, one.ring))
        except (*_FAILS, NotShown) as error:
            why = str(error) or type(error).__name__
        rule = "read for any length" if isinstance(order.size, Length) else "enumeration"
        text = (
            f"{order.size} rows over {order.ranks} ranks, zigzag over {order.ring}: the runtime's "
            "table holds every row once, at its place"
        )
        verdict: Any = "unknown" if why else "proved"
        made.append(Claim(f"p{k}", "mesh", text, rule, verdict=verdict, reason=why))
    return tuple(made)


def _table_differs(order: Order, runs: Runs) -> str:
    if len(runs) != order.ranks:
        return f"{len(runs)} ranks"
    total = 0
    for rank, rows in enumerate(runs):
        taken = 0
        for at, start, count in rows:
            if at < taken or count < 1 or at + count > order.rows:
                return f"rank {rank} holds a row twice, or more than its rows"
            taken = at + count
            total += count
            first = rank * order.rows + at
            for lo, hi in pairwise(sorted({0, count, *edges(first, count, order.block)})):
                if order.at(first + lo) != start + lo or order.at(first + hi - 1) != start + hi - 1:
                    return f"rank {rank}: row {at + lo} is not at {start + lo}"
    return "" if total == order.size else f"{total} rows of {order.size}"


def _ways(calls: Mapping[Call, None], hooks: Hooks) -> tuple[Claim, ...]:
    """That the runtime's text of each way of attention does what it says."""
    made = []
    for k, one in enumerate(calls):
        why = ""
        try:
            for case in cases(one):
                shown(case, hooks.texts)
        except (*_FAILS, ImportError, NoMeaning, NotShown) as error:
            why = f"{type(error).__name__}: {error}"
        text = (
            f"attention.{one.way} of {one.q} and {one.k}, order {one.ring} of {one.ranks} ranks: "
            "heads and rows are dealt to where they belong, and back"
        )
        rule = f"{ATTENTION} read for a rank that is not known"
        verdict: Any = "unknown" if why else "proved"
        made.append(Claim(f"w{k}", "way", text, rule, verdict=verdict, reason=why))
    return tuple(made)


def _texts(hooks: Hooks) -> tuple[Claim, ...]:
    """Which files are meant by axiom `hooks`."""
    made = []
    for k, (name, text) in enumerate(sorted(hooks.texts.items())):
        digest = hashlib.sha256(text.encode()).hexdigest()
        made.append(Claim(f"h{k}", "hook", f"{name}, SHA-256 {digest}", "axiom hooks"))
    return tuple(made)
