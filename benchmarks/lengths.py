"""One compiled module, every length in a range: outputs equal and the budget kept at each.

    python -m benchmarks.lengths gpt2 --layers 2

The module is compiled once at the longest length; the lengths run are steps of a prime, so that
none divides a part size, from 64 to 4096.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

import quire
from benchmarks.measure import MARK, difference, plan_facts
from benchmarks.record import mib, save, table
from benchmarks.tolerance import tolerance
from benchmarks.zoo import CASES, Built, build, dynamic_shapes
from quire.measure import environment, rise


def sweep(case: str, size: Any, layers: int | None, memory: Any, top: int, step: int) -> None:
    """Compile at `top`, then run, compare and measure each length; one line of JSON for each."""
    torch.set_num_threads(2)
    built = build(case, size, "eager", length=top, layers=layers)
    least = max(CASES[case].least, 8)
    shapes = dynamic_shapes(case, built, torch.export.Dim("length", min=least, max=top))
    small = quire.chunk(*built, memory=memory, dynamic_shapes=shapes)
    with torch.no_grad():
        allowed = tolerance(torch.export.export(*built, strict=False).graph)
    print(MARK + json.dumps(plan_facts(small.plan)), flush=True)
    for length in [*range(min(64, top // 8), top, step), top]:
        other = build(case, size, "eager", length=length, layers=layers)
        row = {"length": length, **compare(small, Built(built.model, other.args, other.kwargs))}
        print(MARK + json.dumps(row | {"tolerance": allowed}), flush=True)


def compare(small: Any, built: Built) -> dict[str, Any]:
    """Difference from the model on the same inputs, and the peak of a second and third call."""
    model, args, kwargs = built
    with torch.inference_mode():
        gap = difference(small(*args, **kwargs), model(*args, **kwargs))
        samples = [rise(lambda: small(*args, **kwargs))[0] for _ in range(2)]
    return {"difference": gap, "bytes": max(samples), "samples": samples}


HEAD = (
    "model",
    "lengths",
    "budget MiB",
    "largest peak MiB",
    "kept",
    "largest difference / tolerance",
)


def summary(row: dict[str, Any]) -> list[object]:
    runs, budget = row["runs"], row["plan"]["budget"]
    lengths = [run["length"] for run in runs]
    peak = max(run["bytes"] for run in runs)
    return [
        row["case"], f"{len(runs)} from {min(lengths)} to {max(lengths)}", mib(budget), mib(peak),
        "yes" if peak <= budget else "NO",
        f"{max(run['difference'] / run['tolerance'] for run in runs):.2f}",
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("case", choices=[n for n, c in CASES.items() if c.dynamic], metavar="case")
    options.add_argument("--size", choices=("small", "real"), default="real")
    options.add_argument("--layers", type=int)
    options.add_argument("--memory", type=float, default=0.15, help="of the peak at the top length")
    options.add_argument("--top", type=int, default=4096)
    options.add_argument("--step", type=int, default=211)
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        sweep(given.case, given.size, given.layers, given.memory, given.top, given.step)
        return
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.lengths",
        *sys.argv[1:],
        "--worker",
    ]
    answers = []
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith(MARK):
                answers.append(json.loads(line.removeprefix(MARK)))
                print(line.removeprefix(MARK), end="", flush=True)
    if process.returncode or len(answers) < 2:
        sys.exit(f"the run of {given.case} failed, exit {process.returncode}")
    row = {
        "key": f"{given.case} {given.size} {given.layers or ''} {given.top} {given.step}",
        "case": given.case, "layers": given.layers, "plan": answers[0], "runs": answers[1:],
    }  # fmt: skip
    save("lengths", [row], {"threads": 2, "memory": given.memory})
    print(table(HEAD, [summary(row)]))


if __name__ == "__main__":
    main()
