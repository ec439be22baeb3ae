"""Random plans of random models: is each one proved?

    python -m benchmarks.honest --n 500 --seed 1

The draws are those of `benchmarks.random_cases` (family, attention, length, budget), none is run.
An honest plan that is refused, refuted or not shown, is a failure. Draws whose budget nothing fits
have no plan, and others are drawn in their place. Weights are not written.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
from typing import Any

import attrs

import quire
from benchmarks import workers
from benchmarks.random_cases import Draw, draw
from benchmarks.record import save, table
from benchmarks.zoo import CASES, build


def attempt(item: workers.Item) -> workers.Item:
    """Plan and prove one draw in this process."""
    this = Draw(**{f.name: item[f.name] for f in attrs.fields(Draw)})
    model, args, kwargs = build(this.case, "small", this.attn, length=this.length, device="hollow")
    start = time.perf_counter()
    try:
        small = quire.chunk(model, args, kwargs, memory=this.memory, allow_unknown=True)
    except quire.BudgetError:
        return {"outcome": "no plan"}
    except quire.RefutedError as error:
        return {"outcome": "refuted", "reason": str(error)[:300]}
    found = small.certificate
    assert found is not None
    return {
        "outcome": found.verdict,
        "reason": found.reason[:300],
        "regions": len(small.plan.regions),
        "seconds": time.perf_counter() - start,
    }


HEAD = ("family", "plans", "proved", "unknown", "refuted", "error")


def summary(rows: list[dict[str, Any]]) -> list[list[object]]:
    """A row per family: how many plans, and what was found of them."""
    count: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows:
        count[CASES[row["case"]].family][row["outcome"]] += 1
    return [[name, sum(c.values()), *(c[k] for k in HEAD[2:])] for name, c in count.items()]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--n", type=int, default=500)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--each", type=int, default=20, help="cases per worker process")
    options.add_argument("--only", nargs="+", choices=list(CASES), metavar="case")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        workers.serve(given.worker, attempt)
        return
    rows: list[dict[str, Any]] = []
    items = [attrs.asdict(this) for this in draw(2 * given.n, given.seed, given.only)]
    for row in workers.answers("benchmarks.honest", items, given.each):
        if row["outcome"] == "no plan":
            continue
        rows.append(row | {"key": f"{given.seed}/{row['number']}"})
        if row["outcome"] != "proved":
            print(json.dumps(rows[-1]), flush=True)
        elif len(rows) % 20 == 0:
            print(f"{len(rows)} of {given.n}", flush=True)
        if len(rows) == given.n:
            break
    save("honest", rows, {"n": given.n, "seed": given.seed})
    print(table(HEAD, summary(rows)))
    good = sum(row["outcome"] == "proved" for row in rows)
    print(f"{good} of {len(rows)} proved")
    sys.exit(good < given.n)


if __name__ == "__main__":
    main()
