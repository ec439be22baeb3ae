"""Random models, lengths and budgets: is the promise kept in each?

    python -m benchmarks.random_cases --n 200 --seed 0

For each case: outputs equal to the model's own within a tolerance derived from dtype and reduction
length (`tolerance.py`); measured peak ≤ plan's peak ≤ budget; a budget that nothing fits is
refused, and then the best plan named is above the budget. Measured twice: bytes that torch's
allocator handed out, which must not exceed the plan's peak by one byte, and the rise of the
resident set, which may by half a MiB, the noise of that measure at small sizes. Worker processes
handle many cases each, with the malloc setting that makes memory readable; one that dies fails its
case and no other.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from typing import Any

import attrs
import torch

import quire
from benchmarks import workers
from benchmarks.measure import difference, plan_facts
from benchmarks.record import save, table
from benchmarks.tolerance import tolerance
from benchmarks.zoo import CASES, Attention, build
from quire.measure import allocated, environment, rise

FLOOR = 1 << 19
"""Bytes by which the resident set may rise above the plan's peak: pages that small tensors share
with others, and scratch memory of libraries too small for the plan to count. Readings of one small
module scatter upward by as much again, as the heaps of threads grow and shrink; the lowest counts.
What torch's allocator hands out is held to the peak itself."""


@attrs.frozen
class Draw:
    """One random case. `memory` is what `quire.chunk` gets."""

    number: int
    case: str
    attn: Attention
    length: int
    memory: float | str | None
    seed: int


def draw(n: int, seed: int, names: list[str] | None = None) -> list[Draw]:
    """`n` cases, the same for the same seed."""
    rng = random.Random(seed)
    draws = []
    for number in range(n):
        case = CASES[rng.choice(names or list(CASES))]
        length = rng.randint(case.least, case.small * case.grows) // case.step * case.step
        budget = rng.choice(("fraction",) * 7 + ("min", "tight", "none", "roomy"))
        memory: float | str | None = round(rng.uniform(0.02, 1.0), 4)
        if budget != "fraction":
            memory = {"min": "min", "tight": 0.002, "none": None, "roomy": "1GiB"}[budget]
        draws.append(
            Draw(
                number, case.name, rng.choice(case.attention), max(case.least, length), memory,
                rng.randrange(1 << 30),
            )
        )  # fmt: skip
    return draws


def attempt(this: Draw, runs: int = 4) -> dict[str, Any]:
    """Build, compare and measure one case in this process."""
    model, args, kwargs = build(this.case, "small", this.attn, length=this.length, seed=this.seed)
    start = time.perf_counter()
    try:
        small = quire.chunk(model, args, kwargs, memory=this.memory, verify=False)
    except quire.BudgetError as error:
        best: Any = error.best
        share = this.memory if isinstance(this.memory, float) else 0.0
        asked = int(share * best.baseline_bytes)
        return {"outcome": "refused", "best_bytes": best.peak_bytes, "budget": asked}
    facts: dict[str, Any] = {**plan_facts(small.plan), "chunk_seconds": time.perf_counter() - start}
    with torch.no_grad():
        graph = torch.export.export(model, args, kwargs, strict=False).graph
    with torch.inference_mode():
        allowed = tolerance(graph)
        want, got = model(*args, **kwargs), small(*args, **kwargs)
        gap = difference(got, want)
        del want, got
        samples = [rise(lambda: small(*args, **kwargs))[0] for _ in range(runs)]
        tensors = allocated(lambda: small(*args, **kwargs))[0]
    peak, budget = facts["peak_bytes"], facts["budget"]
    return facts | {
        "outcome": "ran",
        "samples": samples,
        "allocated": tensors,
        "difference": gap,
        "tolerance": allowed,
        "equal": gap <= allowed,
        "kept": tensors <= peak and min(samples) <= peak + FLOOR,
        "planned_within": budget is None or peak <= budget,
    }


def verdict(row: dict[str, Any]) -> bool:
    """Whether a case shows what it should."""
    if row["outcome"] == "refused":
        return row["best_bytes"] > row["budget"]
    return row["outcome"] == "ran" and row["equal"] and row["kept"] and row["planned_within"]


HEAD = ("family", "cases", "good", "refused", "largest difference / tolerance", "measured / plan")


def summary(rows: list[dict[str, Any]]) -> list[list[object]]:
    """A row per family: counts, the worst difference and the range of measured over planned."""
    lines: list[list[object]] = []
    for family in dict.fromkeys(CASES[row["case"]].family for row in rows):
        mine = [row for row in rows if CASES[row["case"]].family == family]
        ran = [row for row in mine if row["outcome"] == "ran"]
        share = [row["allocated"] / max(row["peak_bytes"], 1) for row in ran]
        worst = max((row["difference"] / row["tolerance"] for row in ran), default=0.0)
        lines.append([
            family, len(mine), sum(map(verdict, mine)),
            sum(row["outcome"] == "refused" for row in mine), f"{worst:.2f}",
            f"{min(share):.2f} … {max(share):.2f}" if share else None,
        ])  # fmt: skip
    return lines


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--n", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--each", type=int, default=20, help="cases per worker process")
    options.add_argument("--only", nargs="+", choices=list(CASES), metavar="case")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        workers.serve(given.worker, lambda item: attempt(Draw(**item)))
        return
    rows = []
    items = [attrs.asdict(this) for this in draw(given.n, given.seed, given.only)]
    for row in workers.answers("benchmarks.random_cases", items, given.each, environment()):
        rows.append(row | {"key": f"{given.seed}/{row['number']}", "good": verdict(row)})
        if not rows[-1]["good"]:
            print(json.dumps(rows[-1]), flush=True)
        elif len(rows) % 20 == 0:
            print(f"{len(rows)} of {given.n}", flush=True)
    save("random-cases", rows, {"n": given.n, "seed": given.seed, "threads": 2})
    print(table(HEAD, summary(rows)))
    bad = sum(not row["good"] for row in rows)
    print(f"{len(rows) - bad} of {len(rows)} good")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
