"""Mutants of honest programs: how the prover judges them, and how a float test would.

    python tools/mutate_run.py [COUNT] [SEED] [FAMILY …]

A mutant that the prover accepts is run against the original at several part sizes: if nothing
differs it is *equivalent* (a mistake that changes nothing), else ACCEPTED, which is a failure. The
last column counts the mutants a float test lets through: one run on random inputs at the plan's own
part sizes, outputs within 1e-4. Before its mutants, each family's honest programs are proved.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import fx, nn

from benchmarks.zoo import build
from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.errors import BudgetError
from quire.pipeline import Planning
from quire.plan.plan import Plan
from quire.report.timeline import walk
from quire.verify.prove import prove
from quire.verify.witness import arguments, search
from tools.mutate import mutants

FAMILIES = (
    "gpt2", "llama", "bert", "vit", "esmfold", "t5-encoder", "segformer", "unet2d", "swin", "dit",
)  # fmt: skip
BUDGETS: tuple[Any, ...] = ("min", 0.5, None)
TOLERANCE = 1e-4


@attrs.frozen(eq=False)
class Honest:
    """A plan carried out: the program planned, the plan, and the source that runs."""

    captured: Program
    program: Program
    plan: Plan
    source: str


def honest(name: str) -> Iterator[Honest]:
    """The small model's program, for each attention and each budget that it fits."""
    for attention in ("eager", "sdpa"):
        made = build(name, "small", attention)
        captured = from_exported(export(made.model, made.args, made.kwargs, None))
        planning = Planning(captured)
        for memory in BUDGETS:
            try:
                plan, program = planning.plan(memory)
            except BudgetError:
                continue
            yield Honest(captured, program, plan, apply_chunks(program, plan).text)


def floats_agree(given: Honest, source: str) -> bool:
    """Whether one run of `source` on random inputs is within `TOLERANCE` of the original's."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[Any, torch.Tensor] = {}
    for item in given.program.inputs:
        info = given.program.info(item.node)
        shape = [int(s) for s in info.shape]
        if info.dtype.is_floating_point:
            spread = shape[-1] ** -0.5 if shape else 1.0
            inputs[item] = torch.randn(shape, generator=generator) * spread
        else:
            inputs[item] = torch.randint(0, 2, shape, generator=generator).to(info.dtype)
    weights = {i.target: x.clone() for i, x in inputs.items() if i.kind != "user"}
    users = [x.clone() for i, x in inputs.items() if i.kind == "user"]
    parts = {region.name: region.part for region, _ in walk(given.plan.regions)}
    scope: dict[str, Any] = {}
    exec(compile(source, "<mutant>", "exec"), scope)
    original = fx.GraphModule(nn.Module(), given.program.graph)
    named = {i.node.name: x for i, x in inputs.items()}
    with torch.no_grad():
        want = original(*arguments(given.program, named))
        try:
            got = scope["forward"](weights, parts, *users)
        except (RuntimeError, IndexError, ValueError, TypeError, KeyError):
            return False
    want = want if isinstance(want, list | tuple) else [want]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        for a, b in zip(got, want, strict=True)
        if isinstance(b, torch.Tensor)
    )


def judge(given: Honest, source: str) -> str:
    verdict = prove(given.program, source, witness=False).verdict
    if verdict == "proved":
        return "equivalent" if search(given.program, source) is None else "ACCEPTED"
    return "caught"


def run(names: tuple[str, ...], count: int, seed: int) -> Iterator[tuple[str, str, str, bool]]:
    """(family, kind, verdict, whether floats agree) of each honest program and each mutant."""
    each = -(-count // len(names))
    for name in names:
        plans = list(honest(name))
        for plan in plans:
            found = prove(plan.program, plan.source, captured=plan.captured, witness=False)
            yield name, "honest", found.verdict, floats_agree(plan, plan.source)
        worst = max(plans, key=lambda p: len(p.plan.regions))
        for k, mutant in enumerate(mutants(worst.source, seed)):
            if k == each:
                break
            yield name, mutant.kind, judge(worst, mutant.source), floats_agree(worst, mutant.source)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, kind, verdict, floats in run(tuple(sys.argv[3:]) or FAMILIES, count, seed):
        table[kind][verdict] += 1
        table[kind]["floats let through"] += floats and verdict != "equivalent"
        print(f"{name:12} {kind:28} {verdict:10} {'floats agree' if floats else ''}", flush=True)
    for kind, verdicts in sorted(table.items()):
        print(f"{kind:28}", dict(verdicts))
    lies = [v for kind, v in table.items() if kind != "honest"]
    total = sum((v for v in lies), collections.Counter())
    print("all mutants", dict(total))
    refused = sum(n for v, n in table["honest"].items() if v in ("unknown", "refuted"))
    if total["ACCEPTED"] or refused:
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
