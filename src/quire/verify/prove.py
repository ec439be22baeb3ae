"""Program + applied source → certificate."""

from __future__ import annotations

import time
from typing import Any

from quire.capture.program import Program
from quire.verify import decide, laws, poly, term
from quire.verify.applied import Applied, Step
from quire.verify.certificate import Certificate, program_hash
from quire.verify.check import solve, versions
from quire.verify.claims import Claim
from quire.verify.smt import of_obligation
from quire.verify.value import NoMeaning, NotShown
from quire.verify.witness import search

_TABLES = dict(poly._table), dict(term._table)


def reset() -> None:
    """Forget all terms, so that a proof does not depend on what was proved before."""
    for table, base in zip((poly._table, term._table), _TABLES, strict=True):
        table.clear()
        table.update(base)
    decide.forget()


def prove(
    program: Program,
    source: str,
    plan: str = "",
    *,
    solvers: tuple[str, ...] = ("z3",),
    seconds: float = 10.0,
    witness: bool = True,
) -> Certificate:
    """A certificate that `source`, the applied program, equals `program`.

    `plan` is carried along as JSON. A verdict of "refuted" comes with a claim whose reason names
    a run that differs; that run's script is in the claim's `rule`.
    """
    start = time.perf_counter()
    reset()
    log, conditions = decide.Log(), {}
    decide.LOGS.append(log)
    laws.CLAIMS.append(conditions)
    applied = Applied(program, source)
    reason = ""
    try:
        applied.run()
    except (NoMeaning, NotShown) as error:
        reason = f"{type(error).__name__}: {error}"
    except (
        TypeError, ValueError, KeyError, IndexError, AttributeError, NameError, SyntaxError,
    ) as error:  # fmt: skip
        reason = f"the applied program is not one that can be read: {error!r}"
    finally:
        decide.LOGS.remove(log)
        laws.CLAIMS.remove(conditions)
    ends = [s for s in applied.steps if s.line == 0]
    bad = next((s for s in ends if s.verdict != "equal"), None)
    if bad is not None and not reason:
        first = next((s for s in applied.steps if s.verdict != "equal"), bad)
        reason = f"{first.text}: {first.reason or first.verdict}"
    claims = _claims(log, conditions, applied.steps, solvers, seconds)
    if not reason:
        open_ = [c for c in claims if c.verdict != "proved"]
        reason = f"{open_[0].id}: {open_[0].reason}" if open_ else ""
    verdict: Any = "unknown" if reason else "proved"
    if reason and witness:
        found = search(program, source)
        if found is not None:
            verdict = "refuted"
            reason = (
                f"{found.found} at lengths {found.lengths or 'as captured'}, parts of "
                f"{found.part}, seed {found.seed}"
            )
            claims += (
                Claim("witness", "witness", reason, found.script, verdict="refuted", reason=reason),
            )
    used = {name: versions()[name] for name in solvers}
    sizes = tuple((str(s.name), s.lo, s.hi) for s in program.symbols)
    return Certificate(
        verdict, reason, program_hash(program), plan, source, claims, used,
        sizes=sizes, seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


def _claims(
    log: decide.Log,
    conditions: dict[str, str],
    steps: list[Step],
    solvers: tuple[str, ...],
    seconds: float,
) -> tuple[Claim, ...]:
    made: list[Claim] = []
    for law in laws.LAWS:
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
        answers = iter(solve(texts, name, seconds=seconds))
        made = [_with(c, name, next(answers)) if c.smt2 else c for c in made]
    before = tuple(c.id for c in made)
    for k, s in enumerate(steps):
        verdict = "proved" if s.verdict == "equal" else "unknown"
        if s.verdict != "equal" and s.line:
            continue
        text = f"{s.text} equals the original's for all inputs, lengths and part sizes"
        rule = "same normal form, integers and conditions by the solver"
        made.append(
            Claim(f"e{k}", "equality", text, rule, "", before if k == 0 else (), verdict, s.reason)
        )
    return tuple(made)


def _with(claim: Claim, solver: str, answer: str) -> Claim:
    if answer == "unsat" or claim.verdict != "proved":
        return claim
    return Claim(
        claim.id, claim.kind, claim.text, claim.rule, claim.smt2, claim.depends_on, "unknown",
        f"{solver} says {answer}",
    )  # fmt: skip
