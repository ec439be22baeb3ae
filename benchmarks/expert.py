"""ESMFold's trunk block within a budget, against the same block with its own `chunk_size`.

    python -m benchmarks.expert --lengths 256 512

The model's authors chunk its triangle attention by hand; the sizes tried are 4, 16 and 64. Quire
gets half the lowest peak that any of them reaches.
"""

from __future__ import annotations

import argparse
from typing import Any

import attrs

from benchmarks.measure import Job, run
from benchmarks.memory_speed import gap, kept
from benchmarks.record import interleave, mib, middle, save, table

SIZES = (4, 16, 64)


def compare(length: int, rounds: int, runs: int, size: Any = "real") -> dict[str, Any]:
    """Peaks of the block at each chunk size, then Quire at half the lowest; then times in turn."""
    job = Job("esmfold", "expert", "memory", size=size, length=length, runs=runs)
    experts = {f"chunk_size {n}": attrs.evolve(job, chunk_size=n) for n in SIZES}
    memory = interleave(experts, 1)
    best = min(int(middle(result) or 0) for result in memory.values())
    ours = attrs.evolve(job, mode="chunk", chunk_size=None, memory=best // 2)
    memory |= interleave({"quire": ours}, 1)
    jobs = {**experts, "quire": ours}
    return {
        "key": f"esmfold {size} {length}",
        "length": length,
        "budget": best // 2,
        "memory": memory,
        "speed": interleave(
            {name: attrs.evolve(job, what="speed") for name, job in jobs.items()}, rounds
        ),
        "equal": run(attrs.evolve(ours, what="equal")),
    }


HEAD = ("residues", "how", "peak MiB", "s", "kept", "difference")


def summary(row: dict[str, Any]) -> list[list[object]]:
    """A row for each chunk size and one for Quire."""
    lines: list[list[object]] = []
    for name, memory in row["memory"].items():
        speed = row["speed"][name]
        seconds = middle(speed)
        lines.append([
            row["length"], name, mib(middle(memory)),
            speed.get("error") if seconds is None else f"{seconds:.3g}",
            kept(memory, memory.get("plan", {})), gap(row["equal"]) if name == "quire" else None,
        ])  # fmt: skip
    return lines


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--lengths", type=int, nargs="+", default=[256, 512])
    options.add_argument("--size", choices=("small", "real"), default="real")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--runs", type=int, default=3)
    given = options.parse_args()
    rows = []
    for length in given.lengths:
        print(f"esmfold, {length} residues")
        rows.append(compare(length, given.rounds, given.runs, given.size))
        save("expert", rows, {"threads": 2, "runs": given.runs, "rounds": given.rounds})
    print(table(HEAD, [line for row in rows for line in summary(row)]))


if __name__ == "__main__":
    main()
