"""`make demo`: two real models on long inputs, before and after, measured on this machine.

Each model is measured in three fresh processes: one for time and for whether the outputs are
equal, one for the peak of the model as it is, one for the peak of the chunked module (the malloc
setting that makes memory readable distorts time; see `quire.measure`).
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils import _pytree as pytree

import quire
from quire.measure import environment, peak_rise
from quire.report.progress import Bar
from quire.report.units import bytes_text, ratio_text, seconds_text

ROUNDS = 3
TOLERANCE = 1e-5  # of the largest output; float32 sums in another order differ by less
REPORTS = Path("out")

Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@attrs.frozen
class Case:
    """One model of the demo; `memory` is its budget, as a share of its own peak."""

    title: str
    memory: float
    build: Callable[[], Call]


def gpt2() -> Call:
    """GPT-2 as released, 12 layers of width 768 with eager attention, on 4096 tokens."""
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(n_positions=4096, attn_implementation="eager", use_cache=False)
    tokens = torch.randint(config.vocab_size, (1, 4096))
    return transformers.GPT2Model(config), (tokens,), {}


class Trunk(nn.Module):
    """Blocks of ESMFold's trunk, one after the other."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        configs = importlib.import_module("transformers.models.esm.configuration_esm")
        models = importlib.import_module("transformers.models.esm.modeling_esmfold")
        config = configs.TrunkConfig()
        self.blocks = nn.ModuleList(
            models.EsmFoldTriangularSelfAttentionBlock(config) for _ in range(blocks)
        )

    def forward(
        self, sequence: torch.Tensor, pair: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for block in self.blocks:
            sequence, pair = block(sequence, pair)
        return sequence, pair


def esmfold() -> Call:
    """Four blocks of ESMFold's trunk at their released widths, on a protein of 256 residues."""
    residues, sequence, pair = 256, 1024, 128
    inputs = torch.randn(1, residues, sequence), torch.randn(1, residues, residues, pair)
    return Trunk(blocks=4), inputs, {}


CASES = {
    "gpt2": Case("GPT-2, 12 layers, eager, 4096 tokens", 0.1, gpt2),
    "esmfold": Case("ESMFold trunk, 4 blocks, 256 residues", 0.2, esmfold),
}


def build(name: str) -> Call:
    torch.manual_seed(0)
    model, args, kwargs = CASES[name].build()
    return model.eval(), args, kwargs


def measure_peak(name: str, *, chunked: bool) -> dict[str, Any]:
    """The measured peak of one call, in this process."""
    model, args, kwargs = build(name)
    if chunked:
        model = quire.chunk(model, args, kwargs, memory=CASES[name].memory)
    with torch.inference_mode():
        return {"peak_bytes": peak_rise(lambda: model(*args, **kwargs), torch.device("cpu"))}


def measure_time(name: str) -> dict[str, Any]:
    """Median seconds of both, run in turns, and the largest difference of their outputs."""
    model, args, kwargs = build(name)
    started = time.perf_counter()
    small = quire.chunk(model, args, kwargs, memory=CASES[name].memory)
    planning = time.perf_counter() - started
    seconds: dict[str, list[float]] = {"baseline": [], "chunked": []}
    difference = 0.0
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            outputs = []
            for kind, module in (("baseline", model), ("chunked", small)):
                started = time.perf_counter()
                outputs.append(module(*args, **kwargs))
                if turn:  # the first turn warms up
                    seconds[kind].append(time.perf_counter() - started)
            difference = max(difference, largest_difference(*outputs))
            del outputs
    report = REPORTS / f"{name}.html"
    report.parent.mkdir(exist_ok=True)
    small.report(report)
    return {
        "planning": planning,
        "baseline": median(seconds["baseline"]),
        "chunked": median(seconds["chunked"]),
        "difference": difference,
        "budget": small.plan.budget,
        "plan_peak": small.plan.peak_bytes,
        "verdict": small.certificate.verdict if small.certificate else "unknown",
        "report": str(report),
    }


def largest_difference(want: Any, got: Any) -> float:
    """The largest |difference| over all tensors, each relative to its largest element; infinite
    where shapes or dtypes differ."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(want), pytree.tree_leaves(got), strict=True):
        if not isinstance(a, torch.Tensor):
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        scale = a.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        worst = max(worst, float((a - b).abs().max() / scale))
    return worst


JOBS: dict[str, Callable[[str], dict[str, Any]]] = {
    "time": measure_time,
    "baseline": lambda name: measure_peak(name, chunked=False),
    "chunked": lambda name: measure_peak(name, chunked=True),
}


def in_fresh_process(name: str, job: str) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-m", "quire.demo", name, job],
        env=None if job == "time" else environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


LINES = (
    "measured on this machine",
    "",
    "peak memory",
    "peak memory, chunked",
    "budget",
    "time",
    "time, chunked",
    "outputs equal",
    "the chunked program",
    "captured, planned, proved in",
    "report",
)


def main() -> int:
    """Measure every case and print the table. Returns 1 if a budget or an output is off."""
    console = Console()
    columns: list[tuple[str, ...]] = [LINES]
    good = True
    with Bar() as bar:
        for i, (name, case) in enumerate(CASES.items()):
            found = {}
            for j, job in enumerate(JOBS):
                bar.step(f"{case.title}: {job}", i * len(JOBS) + j, len(CASES) * len(JOBS))
                found[job] = in_fresh_process(name, job)
            timed = found["time"]
            before, after = found["baseline"]["peak_bytes"], found["chunked"]["peak_bytes"]
            kept, equal = after <= timed["budget"], timed["difference"] <= TOLERANCE
            proved = timed["verdict"] == "proved"
            good = good and kept and equal and proved
            columns.append(
                (
                    *case.title.split(", ", 1),
                    bytes_text(before),
                    f"{bytes_text(after)} ({ratio_text(after / before)})",
                    f"{bytes_text(timed['budget'])} {verdict(kept, 'kept', 'not kept')}",
                    seconds_text(timed["baseline"]),
                    f"{seconds_text(timed['chunked'])} "
                    f"({ratio_text(timed['chunked'] / timed['baseline'])})",
                    f"{verdict(equal, 'yes', 'no')}, to {timed['difference']:.0e}",
                    f"{verdict(proved, 'proved', timed['verdict'])} for all inputs",
                    seconds_text(timed["planning"]),
                    timed["report"],
                )
            )
    table = Table(box=None, pad_edge=False, show_header=False)
    for line in zip(*columns, strict=True):
        table.add_row(*line)
    console.print(table)
    return 0 if good else 1


def verdict(good: bool, yes: str, no: str) -> str:
    return f"[green]{yes}[/]" if good else f"[bold red]{no}[/]"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(JOBS[sys.argv[2]](sys.argv[1])))
    else:
        sys.exit(main())
