"""Z3 and cvc5, asked by SMT-LIB text."""

from __future__ import annotations

import z3

from quire.verify import decide
from quire.verify.decide import Obligation
from quire.verify.smt import of_obligation

SECONDS = 2.0

_answers: dict[str, str] = {}


def z3_says(text: str, seconds: float = SECONDS) -> str:
    """ "unsat", "sat", or "unknown"."""
    found = _answers.get(text)
    if found is None:
        solver = z3.Solver()
        solver.set("timeout", int(seconds * 1000))
        solver.from_string(text.replace("(check-sat)", ""))
        found = _answers[text] = str(solver.check())
    return found


def _asked(o: Obligation) -> bool:
    return z3_says(of_obligation(o)) == "unsat"


decide.SOLVER.append(_asked)
