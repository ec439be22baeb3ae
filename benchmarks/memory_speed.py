"""Peak and time of a model within a budget, against the graph or the model it came from.

    python -m benchmarks.memory_speed gpt2 llama vit unet2d-condition esmfold --against eager
    python -m benchmarks.memory_speed gpt2 llama vit --against sdpa
    python -m benchmarks.memory_speed gpt2 llama vit unet2d-condition --fastest

`--against` takes the graph that `torch.export` makes of the model with that attention, runs it as
it is and within `--memory` of its planned peak, in turn. `--fastest` compares Quire without a
budget on the eager graph with the model itself on its own SDPA path.
"""

from __future__ import annotations

import argparse
from typing import Any

import attrs

from benchmarks import host
from benchmarks.measure import Job, run
from benchmarks.record import interleave, mib, middle, ratio, save, table
from benchmarks.zoo import CASES

ATTENTION_DOMINATES = ("gpt2", "llama", "vit", "unet2d-condition")
"""Models whose eager time is mostly attention: there Quire is asked to be faster."""


def targets(case: str, against: str) -> dict[str, float]:
    """The ratios asked for: of peaks and of times, Quire over the baseline."""
    if against == "fastest":
        return {"time": 1.05}
    if against == "sdpa":
        return {"peak": 0.25, "time": 1.05}
    return {"peak": 0.1, "time": 0.67 if case in ATTENTION_DOMINATES else 1.0}


def compare(base: Job, ours: Job, rounds: int, *, memory: bool = True) -> dict[str, Any]:
    """Measure both, interleaved: speed, then memory, then whether the outputs are equal."""
    jobs = {"baseline": base, "quire": ours}
    row: dict[str, Any] = {"speed": interleave(jobs, rounds)}
    if memory:
        still = {name: attrs.evolve(job, what="memory") for name, job in jobs.items()}
        row["memory"] = interleave(still, 1)
    row["equal"] = run(attrs.evolve(ours, what="equal"))
    return row


def summary(row: dict[str, Any]) -> list[object]:
    """One row of the table that is printed and stands in `docs/benchmarks.md`."""
    speed, memory, equal = row["speed"], row.get("memory", {}), row["equal"]
    base, ours = memory.get("baseline", {}), memory.get("quire", {})
    peak, time = ratio(ours, base), ratio(speed["quire"], speed["baseline"])
    plan = ours.get("plan") or speed["quire"].get("plan") or {}
    error = speed["quire"].get("error") or ours.get("error")
    return [
        row["case"],
        row["length"],
        mib(middle(base)),
        mib(middle(ours)),
        None if peak is None else f"{peak - 1:+.1%}",
        mib(plan.get("peak_bytes")),
        kept(ours, plan),
        _seconds(speed["baseline"]),
        _seconds(speed["quire"]),
        None if time is None else f"{time:.2f}×",
        error or gap(equal),
    ]


HEAD = (
    "model", "length", "baseline MiB", "Quire MiB", "change", "plan's peak MiB", "kept",
    "baseline s", "Quire s", "time", "difference",
)  # fmt: skip


def gap(equal: dict[str, Any]) -> str:
    """The difference of outputs beside what is allowed."""
    if "error" in equal:
        return equal["error"]
    sign = "≤" if equal["difference"] <= equal["tolerance"] else ">"
    return f"{equal['difference']:.1e} {sign} {equal['tolerance']:.1e}"


def kept(result: dict[str, Any], plan: dict[str, Any]) -> str | None:
    """Whether measured ≤ plan's peak ≤ budget."""
    if not plan or "samples" not in result:
        return None
    peak, budget = plan["peak_bytes"], plan["budget"]
    within = max(result["samples"]) <= peak and (budget is None or peak <= budget)
    return "yes" if within else "NO"


def _seconds(result: dict[str, Any]) -> str | None:
    value = middle(result)
    return None if value is None else f"{value:.3g}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("cases", nargs="+", choices=list(CASES), metavar="case")
    options.add_argument("--against", choices=("eager", "sdpa"), default="eager")
    options.add_argument("--fastest", action="store_true")
    options.add_argument("--memory", help='budget: bytes, "512MiB", 0.1 of the peak, or "min"')
    options.add_argument("--size", choices=("small", "real"), default="real")
    options.add_argument("--length", type=int)
    options.add_argument("--layers", type=int)
    options.add_argument("--rounds", type=int, default=3, help="processes per side")
    options.add_argument("--runs", type=int, default=3, help="timed calls per process")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", default="float32")
    given = options.parse_args()

    against = "fastest" if given.fastest else given.against
    rows = []
    for case in given.cases:
        ours = Job(
            case, "chunk", size=given.size, attn="eager" if given.fastest else given.against,
            length=given.length, layers=given.layers, runs=given.runs, device=given.device,
            dtype=given.dtype, memory=_memory(given.memory, against),
        )  # fmt: skip
        base = attrs.evolve(ours, mode="sdpa" if given.fastest else "graph", memory=None)
        length = given.length or CASES[case].length(given.size)
        print(f"{case}, {length} {CASES[case].unit}, against {against}", flush=True)
        row: dict[str, Any] = {
            "key": f"{case} {given.size} {length} {given.layers or ''} {against} {given.dtype}",
            "case": case, "length": length, "unit": CASES[case].unit, "layers": given.layers,
            "against": against, "size": given.size, "targets": targets(case, against),
        }  # fmt: skip
        row |= compare(base, ours, given.rounds)
        rows.append(row)
        save(
            f"memory-speed-{against}", rows,
            {"threads": 2, "dtype": given.dtype, "device": given.device, "runs": given.runs,
             "rounds": given.rounds, "limits": host.limits()},
        )  # fmt: skip
    print(table(HEAD, [summary(row) for row in rows]))


def _memory(text: str | None, against: str) -> int | float | str | None:
    if text is None:
        return {"eager": 0.1, "sdpa": 0.25, "fastest": None}[against]
    if text.isdigit():
        return int(text)
    return float(text) if text.replace(".", "", 1).isdigit() else text


if __name__ == "__main__":
    main()
