"""Program + the text that ranks run → certificate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from quire.capture.program import Program
from quire.verify import decide, laws
from quire.verify.certificate import Certificate, program_hash
from quire.verify.check import versions
from quire.verify.prove import claims_of, reset
from quire.verify.shard.applied import Applied, Hint, Source
from quire.verify.value import NoMeaning, NotShown


def prove_shard(
    program: Program,
    sources: Sequence[Source],
    names: Mapping[str, Sequence[str]],
    *,
    ranks: int,
    hints: Mapping[str, Hint],
    outputs: Sequence[Hint],
    plan: str = "",
    solvers: tuple[str, ...] = ("z3",),
    seconds: float = 10.0,
) -> Certificate:
    """A certificate that the functions `sources`, run by each of `ranks` ranks, give `program`'s
    outputs: whole, or this rank's rows, as `outputs` says."""
    start = time.perf_counter()
    reset()
    log, conditions = decide.Log(), {}
    decide.LOGS.append(log)
    laws.CLAIMS.append(conditions)
    applied = None
    reason = ""
    try:
        applied = Applied(program, sources, names, ranks, hints, outputs)
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
    steps = applied.steps if applied is not None else []
    bad = next((s for s in steps if s.line == 0 and s.verdict != "equal"), None)
    if bad is not None and not reason:
        first = next((s for s in steps if s.verdict != "equal"), bad)
        reason = f"{first.text}: {first.reason or first.verdict}"
    claims = claims_of(log, conditions, steps, solvers, seconds)
    if not reason:
        open_ = [c for c in claims if c.verdict != "proved"]
        reason = f"{open_[0].id}: {open_[0].reason}" if open_ else ""
    verdict: Any = "unknown" if reason else "proved"
    used = {name: versions()[name] for name in solvers}
    text = "\n".join(f"# {s.module or 'root'} {s.call}\n{s.text}" for s in sources)
    return Certificate(
        verdict, reason, program_hash(program), plan, text, claims, used,
        seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip
