"""The longest input that fits in the peak the eager model has at a usual length.

    python -m benchmarks.longest gpt2 --layers 2 --limit 65536
    python -m benchmarks.longest esmfold
    python -m benchmarks.longest unet2d-condition --run 320

The eager graph is run at the base length and its peak becomes the budget. Longer inputs are only
planned, with unwritten weights and inputs, until the longest that fits is found; that one, or a
shorter one that is said, is run and measured.
"""

from __future__ import annotations

import argparse
from typing import Any

import attrs

from benchmarks.measure import Job, run
from benchmarks.record import mib, middle, save, table
from benchmarks.zoo import CASES

BASES = {"gpt2": 4096, "llama": 4096, "esmfold": 256, "unet2d-condition": 64}


def search(job: Job, base: int, limit: int, near: float) -> tuple[int, list[dict[str, Any]]]:
    """The longest length, to within `near` of itself, for which `job` has a plan; and all tried."""
    step = CASES[job.case].step
    tried: list[dict[str, Any]] = []

    def fits(length: int) -> bool:
        answer = run(attrs.evolve(job, what="plan", length=length))
        if "error" in answer:
            if not answer["error"].startswith("BudgetError"):
                raise RuntimeError(answer["error"])
            # The lines after the first name files of this machine.
            answer["error"] = answer["error"].splitlines()[0]
        tried.append({"length": length, **answer})
        print(f"  {length}: {answer.get('error', 'fits')}", flush=True)
        return "error" not in answer

    good, bad = base, min(2 * base, limit)
    while bad > good and fits(bad):
        good, bad = bad, min(2 * bad, limit)
    while bad - good > max(step, near * good):
        middle_ = (good + bad) // 2 // step * step
        good, bad = (middle_, bad) if fits(middle_) else (good, middle_)
    return good, tried


def longest(
    case: str, base: int, layers: int | None, limit: int, near: float, ran: int | None
) -> dict[str, Any]:
    eager = Job(case, "graph", "memory", length=base, layers=layers, runs=2)
    first = run(eager)
    peak = middle(first)
    if peak is None:
        raise RuntimeError(first["error"])
    budget = int(peak)
    print(f"{case}: eager graph at {base} takes {mib(budget)} MiB", flush=True)
    job = attrs.evolve(eager, mode="chunk", memory=budget, runs=1)
    length, tried = search(job, base, limit, near)
    ran = min(ran or length, length)
    confirmed = run(attrs.evolve(job, length=ran), timeout=3 * 3600)
    unfit = [t for t in tried if "error" in t]
    return {
        "key": f"{case} {base} {layers or ''}", "case": case, "base": base, "layers": layers,
        "budget": budget, "eager": first, "length": length, "tried": tried, "ran": ran,
        "confirmed": confirmed,
        "binds": min(unfit, key=lambda t: t["length"])["error"] if unfit else None,
    }  # fmt: skip


HEAD = (
    "model",
    "layers",
    "base",
    "budget MiB",
    "longest",
    "times",
    "run at",
    "measured MiB",
    "kept",
)


def summary(row: dict[str, Any]) -> list[object]:
    samples = row["confirmed"].get("samples")
    return [
        row["case"], row["layers"], row["base"], mib(row["budget"]), row["length"],
        f"×{row['length'] / row['base']:.1f}", row["ran"],
        mib(max(samples)) if samples else row["confirmed"]["error"],
        None if not samples else "yes" if max(samples) <= row["budget"] else "NO",
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("cases", nargs="+", choices=list(CASES), metavar="case")
    options.add_argument("--base", type=int)
    options.add_argument("--layers", type=int, help="fewer layers, to keep the run short")
    options.add_argument("--limit", type=int, default=1 << 20, help="do not look further")
    options.add_argument("--near", type=float, default=0.03)
    options.add_argument("--run", type=int, help="run here, where the longest takes hours")
    given = options.parse_args()
    rows = []
    for case in given.cases:
        base = given.base or BASES.get(case) or CASES[case].real
        rows.append(longest(case, base, given.layers, given.limit, given.near, given.run))
        save("longest", rows, {"threads": 2, "near": given.near})
    print(table(HEAD, [summary(row) for row in rows]))


if __name__ == "__main__":
    main()
