"""Program + applied source → certificate."""

from __future__ import annotations

import time
from typing import Any

from quire.capture.program import Program
from quire.verify import decide, laws, poly
from quire.verify.applied import Applied
from quire.verify.certificate import Certificate, program_hash
from quire.verify.check import solve, versions
from quire.verify.claims import Claim, RefutedError, UnprovedError
from quire.verify.depth import room
from quire.verify.exact import ExactRun, exact_run
from quire.verify.field import P
from quire.verify.rewritten import Rewritten
from quire.verify.rounding import statements
from quire.verify.sizes import Sizes
from quire.verify.smt import of_obligation
from quire.verify.solver import EFFORT, z3_says
from quire.verify.steps import Step
from quire.verify.term import core
from quire.verify.value import NoMeaning, NotShown
from quire.verify.witness import search

_TABLES = dict(poly._table), dict(core._table)


def reset() -> None:
    """Forget all terms, so that a proof does not depend on what was proved before."""
    for table, base in zip((poly._table, core._table), _TABLES, strict=True):
        table.clear()
        table.update(base)
    decide.forget()


@room()
def prove(
    program: Program,
    source: str,
    plan: str = "",
    *,
    captured: Program | None = None,
    solvers: tuple[str, ...] = ("z3",),
    seconds: float = 10.0,
    witness: bool = True,
    exact: bool = False,
) -> Certificate:
    """A certificate that `source`, the applied program, equals `program`, and this the one as
    `captured`, where given.

    `plan` is carried along as JSON. A verdict of "refuted" comes with a claim whose reason names
    a run that differs; that run's script is in the claim's `rule`. With `exact` the program is run
    in a finite field as well, where that can be done.
    """
    start = time.perf_counter()
    reset()
    log, conditions = decide.Log(), {}
    decide.LOGS.append(log)
    laws.CLAIMS.append(conditions)
    sizes = Sizes(program)
    applied = Applied(program, source, sizes)
    steps: list[Step] = []
    reason = ""
    try:
        if captured is not None:
            steps += Rewritten(captured, program, sizes).run()
        steps += applied.run()
    except (NoMeaning, NotShown, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    except (
        TypeError, ValueError, KeyError, IndexError, AttributeError, NameError, SyntaxError,
    ) as error:  # fmt: skip
        reason = f"the applied program is not one that can be read: {error!r}"
    finally:
        decide.LOGS.remove(log)
        laws.CLAIMS.remove(conditions)
    ends = [s for s in steps if s.line == 0]
    bad = next((s for s in ends if s.verdict != "equal"), None)
    if bad is not None and not reason:
        first = next((s for s in steps if s.verdict != "equal"), bad)
        reason = f"{first.text}: {first.reason or first.verdict}"
    claims = claims_of(log, conditions, steps, solvers, seconds)
    if not reason:
        open_ = [c for c in claims if c.verdict != "proved"]
        reason = f"{open_[0].id}: {open_[0].reason}" if open_ else ""
    verdict: Any = "unknown" if reason else "proved"
    if reason and witness:
        found = search(captured or program, source)
        if found is not None:
            verdict = "refuted"
            reason = (
                f"{found.found} at lengths {found.lengths or 'as captured'}, parts of "
                f"{found.part}, seed {found.seed}"
            )
            claims += (
                Claim("witness", "witness", reason, found.script, verdict="refuted", reason=reason),
            )
    if exact:
        claims, verdict, reason = ran(exact_run(program, source), claims, verdict, reason)
    used = {name: versions()[name] for name in solvers}
    ranges = tuple((str(s.name), s.lo, s.hi) for s in program.symbols)
    same = bool(steps) and not any(s.line < 0 for s in steps) and "def region_" not in source
    try:
        rounding = statements(captured or program, same)
    except NoMeaning as error:
        rounding = (("outputs", f"no bound: {error}"),)
    return Certificate(
        verdict, reason, program_hash(captured or program), plan, source, claims, used,
        rounding=rounding, sizes=ranges, seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


def claims_of(
    log: decide.Log,
    conditions: dict[str, str],
    steps: list[Step],
    solvers: tuple[str, ...],
    seconds: float,
    checked: tuple[tuple[str, str], ...] = (),
    over: str = "all part sizes",
    more: tuple[laws.Law, ...] = (),
) -> tuple[Claim, ...]:
    """All claims of a proof: laws (with `more`), integer and condition texts as the solvers answer
    them, what was `checked` (kind, text) by going through all elements, and the steps."""
    made: list[Claim] = []
    for law in (*laws.LAWS, *more):
        for k, text in enumerate(law.obligations):
            made.append(Claim(f"law:{law.name}:{k}", "law", law.statement, "induction", text))
        if law.axiom:
            made.append(Claim(f"axiom:{law.name}", "axiom", law.statement, "trusted"))
    seen: set[str] = set()
    numbered = 0
    for o in log.items.values():
        text = of_obligation(o)
        if text not in seen and (o.goal.constant is None or o.premises):
            seen.add(text)
            numbered += 1
            goal = f"{o.goal} {'≥' if o.relation == '>=' else '='} 0"
            made.append(Claim(f"i{numbered}", "integer", f"{o.why}: {goal}", "solver", text))
    for k, (text, why) in enumerate(conditions.items()):
        if not text.startswith(";"):
            made.append(Claim(f"c{k}", "condition", why, "solver", text))
    texts = [c.smt2 for c in made if c.smt2]
    for name in solvers:
        known = [z3_says(t, 20 * EFFORT) for t in texts] if name == "z3" else solve(texts, name)
        answers = iter(known)
        made = [_with(c, name, next(answers)) if c.smt2 else c for c in made]
    for k, (kind, text) in enumerate(checked):
        made.append(Claim(f"x{k}", kind, text, "all elements gone through"))
    before = tuple(c.id for c in made)
    for k, s in enumerate(steps):
        verdict = "proved" if s.verdict == "equal" else "unknown"
        if s.verdict != "equal" and s.line:
            continue
        text = f"{s.text} equals the original's for all inputs, lengths and {over}"
        rule = "same normal form, integers and conditions by the solver"
        made.append(
            Claim(f"e{k}", "equality", text, rule, "", before if k == 0 else (), verdict, s.reason)
        )
    return tuple(made)


def ran(
    run: ExactRun, claims: tuple[Claim, ...], verdict: Any, reason: str
) -> tuple[tuple[Claim, ...], Any, str]:
    """The claims with an exact run's; a run that differs refutes."""
    how = f"{run.runs} runs in the field of {P}"
    if run.equal is None:
        claim = Claim("exact", "exact run", f"not run: {run.reason}", how)
    elif run.equal:
        text = f"equal without tolerance; different programs pass with chance ≤ {run.chance:.1g}"
        claim = Claim("exact", "exact run", text, how)
    else:
        verdict, reason = "refuted", f"exact run: {run.reason}"
        claim = Claim("exact", "exact run", "differs", how, verdict=verdict, reason=reason)
    return (*claims, claim), verdict, reason


def _with(claim: Claim, solver: str, answer: str) -> Claim:
    if answer == "unsat" or claim.verdict != "proved":
        return claim
    return Claim(
        claim.id, claim.kind, claim.text, claim.rule, claim.smt2, claim.depends_on, "unknown",
        f"{solver} says {answer}",
    )  # fmt: skip


def certified(
    captured: Program, program: Program, source: str, plan: str, allow_unknown: bool
) -> Certificate:
    """The certificate of an applied program that may be handed out.

    Raises RefutedError, and UnprovedError unless `allow_unknown`.
    """
    found = prove(program, source, plan, captured=captured)
    if found.verdict == "refuted":
        raise RefutedError(
            f"the applied program is not the model: {found.reason}",
            certificate=found,
            witness=next((c.rule for c in found.claims if c.kind == "witness"), ""),
            fix="this is a fault of Quire's; the error's `witness` is a script that shows it",
        )
    if found.verdict == "unknown" and not allow_unknown:
        raise UnprovedError(
            f"not shown to equal the model: {found.reason}",
            certificate=found,
            allowed="verdict proved; or unknown with allow_unknown=True",
            fix="allow_unknown=True takes it as it is, verify=False does not ask",
        )
    return found
