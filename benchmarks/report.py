"""Render `docs/benchmarks.md` from the result files: a table for each machine, newest first.

python -m benchmarks.report
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from benchmarks import (
    compiling,
    decoding,
    expert,
    families,
    honest,
    lengths,
    longest,
    memory_speed,
    planning,
    proving,
    random_cases,
)  # fmt: skip
from benchmarks.measure import ROOT
from benchmarks.record import records, table

Lines = list[list[object]]


@attrs.frozen
class Section:
    """A part of the page: what is asked for, the commands that show it, and how rows are read."""

    what: str
    title: str
    asked: str
    commands: tuple[str, ...]
    head: Sequence[str]
    lines: Callable[[list[dict[str, Any]]], Lines]


def _each(summary: Callable[[dict[str, Any]], list[object]]) -> Callable[..., Lines]:
    return lambda rows: [summary(row) for row in rows]


SECTIONS = (
    Section(
        "memory-speed-eager",
        "Against the eager-attention graph",
        "Peak −90 %, time at most that of the graph; at most 0.67 of it where attention dominates "
        "(GPT-2, Llama, ViT-L, U-Net). The budget is 0.1 of the planned baseline. ESMFold at 256 "
        "residues keeps it by taking its triangle multiplications in halves: the pair state and "
        "one projection of it, whole, would be 0.105.",
        (
            "benchmarks.memory_speed gpt2 llama vit unet2d-condition esmfold",
            "benchmarks.memory_speed esmfold --length 512",
        ),
        memory_speed.HEAD,
        _each(memory_speed.summary),
    ),
    Section(
        "memory-speed-sdpa",
        "Against the SDPA graph",
        "Peak −75 % at 1.05 of the time or less. The budget is 0.25 of the planned baseline.",
        ("benchmarks.memory_speed gpt2 llama vit --against sdpa",),
        memory_speed.HEAD,
        _each(memory_speed.summary),
    ),
    Section(
        "memory-speed-fastest",
        "The fastest plan",
        "`memory=None` on the eager graph, against the model itself on its own SDPA path: at most "
        "1.05 of its time.",
        ("benchmarks.memory_speed gpt2 llama vit unet2d-condition --fastest",),
        memory_speed.HEAD,
        _each(memory_speed.summary),
    ),
    Section(
        "expert",
        "Against the expert",
        "ESMFold's trunk block with its own `chunk_size`: half its lowest peak, and not slower.",
        ("benchmarks.expert --lengths 256 512",),
        expert.HEAD,
        lambda rows: [line for row in rows for line in expert.summary(row)],
    ),
    Section(
        "longest",
        "The longest input in the eager model's peak",
        "× 12 for GPT-2, × 5 in side length for ESMFold's block and the U-Net, or what is reached "
        "and what binds. Found by planning, confirmed by running. ESMFold is bound by its triangle "
        "multiplications: at 832 residues the pair state, whole (338 MiB), half of one projection "
        "of it (169) and a quarter of their product (85) are alive at once.",
        (
            "benchmarks.longest gpt2 --layers 2 --limit 65536",
            "benchmarks.longest esmfold",
            "benchmarks.longest unet2d-condition --limit 768 --near 0.1 --run 320",
        ),
        longest.HEAD,
        _each(longest.summary),
    ),
    Section(
        "random-cases",
        "Random cases",
        "Outputs equal, measured ≤ plan's peak ≤ budget, infeasible budgets refused, in all. "
        "Measured: what torch's allocator handed out.",
        ("benchmarks.random_cases --n 200 --seed 0",),
        random_cases.HEAD,
        random_cases.summary,
    ),
    Section(
        "lengths",
        "One module, every length",
        "Compiled once; equal, and the budget kept, at each length.",
        ("benchmarks.lengths gpt2 --layers 2",),
        lengths.HEAD,
        _each(lengths.summary),
    ),
    Section(
        "planning",
        "Planning time",
        "torch's capture shown apart. Growth with distinct layers only.",
        ("benchmarks.planning",),
        planning.HEAD,
        _each(planning.summary),
    ),
    Section(
        "proving-cases",
        "The plans above, proved",
        "Weights are not written; capture and planning shown apart.",
        ("benchmarks.proving --cases",),
        proving.HEAD,
        _each(proving.summary),
    ),
    Section(
        "proving",
        "Proof time, by depth",
        "Every length from 2 to 131072. 70 B within 60 s, 405 B within 120 s, in 4 GB.",
        ("benchmarks.proving --plot docs/proving.svg",),
        proving.HEAD,
        _each(proving.summary),
    ),
    Section(
        "honest",
        "Random plans, proved",
        "No honest plan refused.",
        ("benchmarks.honest --n 250 --seed 1", "benchmarks.honest --n 250 --seed 2"),
        honest.HEAD,
        honest.summary,
    ),
    Section(
        "decoding",
        "Decoding against the bandwidth and other engines",
        "135 M bf16: 87 % of the read bandwidth, 1.6 × llama.cpp, 6 × eager. 1.1 B bf16: 93 %, "
        "1.3 × llama.cpp. int8 and int4: 80 % of their own limit. lossless: Quire "
        "holds bf16 weights in 12.5 bits, its peers as they are. More keys cost at most 1.3 × "
        "their bytes. More tokens a second than every peer at batch 1, 4, 16, 32. × is an "
        "engine's time over Quire's.",
        (
            "benchmarks.decoding 135m --weights bfloat16 int8 int4",
            "benchmarks.decoding 135m --batch 4 16 32 --engines quire llama.cpp onnxruntime eager",
            "benchmarks.decoding 135m --positions 16 512 1024 2048 4000 --engines quire",
            "benchmarks.decoding 1.1b --weights bfloat16 --engines quire eager llama.cpp",
            "benchmarks.decoding 1.1b --weights int8 int4 --engines quire llama.cpp",
            "benchmarks.decoding 135m --weights lossless",
            "benchmarks.decoding 1.1b --weights lossless --engines quire eager llama.cpp",
        ),
        decoding.HEAD,
        lambda rows: [line for row in rows for line in decoding.summary(row)],
    ),
    Section(
        "compiling",
        "From a model to a kernel, by depth",
        "15 s at 30 layers with the C++ compiler, whose time is within 20 % of that at 8 and at "
        "80. torch's capture shown apart.",
        ("benchmarks.compiling 8 30 80",),
        compiling.HEAD,
        _each(compiling.summary),
    ),
    Section(
        "families",
        "Causal LMs at their real width, two layers",
        "Greedy tokens equal to Hugging Face's over 200 steps in float32; the same bits for 1, 2 "
        "and 3 threads. Differences are over the largest logit. *Bound* is what the certificate's "
        "bound of each op, carried through all steps to first order, allows where kernel and eager "
        "differ most.",
        ("benchmarks.families --all",),
        families.HEAD,
        _each(families.summary),
    ),
)

PREFACE = """# Benchmarks

Made by `python -m benchmarks.report` from the files in `benchmarks/results/`: do not edit.
`make bench` runs everything here.

How it is measured. Baseline and Quire run in turn, each in fresh processes: speed in some, memory
in others, for the malloc setting that makes memory readable distorts time. fp32, two threads,
`torch.inference_mode`, seeded random weights. Speed: default malloc, one call to warm up, the
median of the samples. Memory: the rise of the resident set's high-water mark over one call, after
one to warm up, with `MALLOC_MMAP_THRESHOLD_=65536`; outputs are counted, weights and inputs are
not. The mark is exact: a call that does nothing reads as at most 4 KiB, and small models within
0.25 MiB of what torch's allocator hands out (`src/quire/measure.py` says what it takes). The first
call of a process reads 7 to 16 MB more that stay, hence the warm-up.
*Kept* means measured ≤ plan's peak ≤ budget, for every sample. *Difference* is the largest over the
outputs, relative to the largest value of each, and what `benchmarks/tolerance.py` allows. The raw
samples are in the files.
"""


def page() -> str:
    """The whole of `docs/benchmarks.md`."""
    parts = [PREFACE]
    for section in SECTIONS:
        commands = "\n".join(f"    python -m {command}" for command in section.commands)
        parts.append(f"## {section.title}\n\n{section.asked}\n\n{commands}\n")
        found = records(section.what)
        if not found:
            parts.append("Not measured yet.\n")
        for record in found:
            facts = record["hardware"]
            where = facts.get("gpu") if record["settings"].get("device") == "cuda" else facts["cpu"]
            parts.append(table(section.head, section.lines(record["rows"])) + "\n")
            days = [row["date"] for row in record["rows"]]
            when = " to ".join(sorted({min(days), max(days)}))
            parts.append(f"{when}, {where}, {facts['cores']} cores, torch {facts['torch']}.\n")
    parts.append("## Coverage\n\nEvery family, in [coverage.md](coverage.md): `make coverage`.\n")
    return "\n".join(parts)


def main() -> None:
    path = ROOT / "docs" / "benchmarks.md"
    path.write_text(page())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
