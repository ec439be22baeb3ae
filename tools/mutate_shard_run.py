"""Lies about sharded programs, and how the prover judges them.

    python tools/mutate_shard_run.py [COUNT] [SEED]

COUNT lies are drawn evenly from small models, all ways of attention and several P, at one length
and at all lengths of a range. One that the prover accepts is run in the finite field, forward and
backward: if nothing differs it is *equivalent* (such as another filling of rows that nobody reads),
else ACCEPTED, a failure. The honest programs are proved first.
"""

from __future__ import annotations

import collections
import itertools
import random
import sys
from collections.abc import Iterator

from quire.shard_proof import hooks
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Task
from tests.verify.shard.cases import ranged, sharded
from tools.mutate_shard import Lie, judge, lies

CASES = (
    ("llama", 4, "ulysses"), ("llama", 4, "ring"), ("llama", 4, "gathered"), ("llama", 4, "hybrid"),
    ("llama", 8, "hybrid"), ("llama", 2, "ring"), ("qwen3", 4, "ring"), ("qwen3", 4, "ulysses"),
    ("bert", 4, "ring"), ("bert", 4, "ulysses"), ("gpt2", 8, "ring"), ("gpt2", 4, "gathered"),
    ("llama", 4, "ring", 3), ("gpt2", 4, "ulysses", 2), ("mixtral", 4, "ring"),
    ("mixtral-aux", 4, "gathered"), ("mixtral-aux", 8, "hybrid"), ("mixtral-aux", 4, "ulysses", 3),
)  # fmt: skip
"""Model, ranks, way, and the parts that ops on rows go in."""

SIZE = 13

RANGED = ((4, "ulysses"), (4, "ring"), (4, "gathered"), (8, "hybrid"))
"""Ranks and way of a small decoder at all lengths of a range."""

LENGTHS = 241, 512


def tasks() -> Iterator[tuple[str, Task]]:
    for family, ranks, way, *parts in CASES:
        made = sharded(family, SIZE, ranks, way, parts=parts[0] if parts else 1)
        yield f"{family}, {ranks} ranks, {way}{parts or ''}", made
    for ranks, way in RANGED:
        yield f"all lengths, {ranks} ranks, {way}", ranged(ranks, way, *LENGTHS)


def main(count: int = 250, seed: int = 0) -> int:
    drawn: list[list[Lie]] = []
    for name, task in tasks():
        found = prove_task(task, hooks(), exact=True)
        print(f"{name}: {found.verdict} {found.reason}", flush=True)
        if found.verdict != "proved":
            return 1
        made = list(lies(task, hooks()))
        random.Random(f"{seed} {name}").shuffle(made)
        drawn.append(made)
    turns = [lie for row in itertools.zip_longest(*drawn) for lie in row if lie is not None]
    tables: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for lie in turns[:count]:
        answer = judge(lie)
        tables[lie.kind][answer] += 1
        if answer in ("equivalent", "ACCEPTED"):
            print(f"{answer}: {lie.kind}: {lie.what}", flush=True)
    total: collections.Counter[str] = collections.Counter()
    for kind, answers in sorted(tables.items()):
        total += answers
        print(f"{kind:20} {dict(answers)}")
    print(f"{sum(total.values())} lies: {dict(total)}")
    return 1 if total["ACCEPTED"] else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
