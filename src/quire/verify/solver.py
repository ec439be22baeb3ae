"""Z3 in this process, asked by SMT-LIB text; each text once."""

from __future__ import annotations

import z3

from quire.verify import decide
from quire.verify.decide import Obligation
from quire.verify.smt import of_obligation

EFFORT = 200_000
"""Z3's own units of work for one question of the search, some tenths of a second: unlike a time
limit it gives the same answer on a busy machine."""
MEGABYTES = 3 << 10

z3.set_param("memory_max_size", MEGABYTES)

_answers: dict[str, str] = {}


def z3_says(text: str, effort: int = EFFORT) -> str:
    """ "unsat", "sat", or "unknown"."""
    found = _answers.get(text)
    if found is None:
        solver = z3.Solver()
        solver.set("rlimit", effort)
        solver.from_string(text.replace("(check-sat)", ""))
        found = _answers[text] = str(solver.check())
    return found


def _asked(o: Obligation) -> bool:
    return z3_says(of_obligation(o)) == "unsat"


decide.SOLVER.append(_asked)
