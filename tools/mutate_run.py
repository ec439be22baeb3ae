"""python tools/mutate_run.py [COUNT] [SEED]: mutants of honest programs, counted by kind."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator

import torch
from torch.export import ExportedProgram

from benchmarks.zoo import build
from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.verify.prove import prove
from quire.verify.witness import search
from tools.mutate import mutants

FAMILIES = ("gpt2", "llama", "bert", "vit", "esmfold", "t5-encoder", "segformer", "unet2d")


def honest(name: str) -> tuple[Program, str]:
    """A small model's program and the source that its smallest plan is carried out by."""
    made = build(name, "small", "eager")
    exported: ExportedProgram = export(made.model, made.args, made.kwargs, None)
    plan, program = Planning(from_exported(exported)).plan("min")
    return program, apply_chunks(program, plan).text


def run(names: tuple[str, ...], count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(family, kind, verdict) of each mutant, and of each honest program."""
    each = -(-count // len(names))
    for name in names:
        program, source = honest(name)
        yield name, "honest", prove(program, source, witness=False).verdict
        for k, mutant in enumerate(mutants(source, seed)):
            if k == each:
                break
            verdict = prove(program, mutant.source, witness=False).verdict
            if verdict == "proved":
                verdict = "equivalent" if search(program, mutant.source) is None else "ACCEPTED"
            yield name, mutant.kind, verdict


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, kind, verdict in run(FAMILIES, count, seed):
        table[kind][verdict] += 1
        print(f"{name:12} {kind:28} {verdict}", flush=True)
    for kind, verdicts in sorted(table.items()):
        print(f"{kind:28}", dict(verdicts))
    if any(v["ACCEPTED"] for v in table.values()):
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
