"""Time of the proof of a sharded training step, forward and backward, at the shapes of Llama 8 B.

    python tools/prove_shards.py [RANKS] [TOKENS] [LAYERS]

The model is on the meta device; the plan is that of quire.shard on H100s of 80 GB, with what that
recomputes, offloads and runs in parts. Ends with 1 if it is not proved, or not within two minutes.
"""

from __future__ import annotations

import sys
import time

from benchmarks.scaling import MODELS, model
from benchmarks.scaling import captured as program_of
from quire.sharding import built, plan_shards, prove_built, topology_of

MOST = 120.0
"""Seconds."""


def main(ranks: int = 8, tokens: int = 1 << 17, layers: int = 32) -> int:
    llama, batch = model(MODELS["8 B"], tokens, layers)
    started = time.perf_counter()
    program = program_of(llama, batch)
    captured = time.perf_counter()
    plan = plan_shards(program, ranks, topology_of("h100", "meta"), budget=80 * 10**9)
    made = built(llama, program, plan)
    planned = time.perf_counter()
    found = prove_built(llama, made)
    took = time.perf_counter() - planned
    print(
        f"{layers} layers, {tokens} tokens, {ranks} ranks, ops on rows in {plan.memory.parts} "
        f"parts: captured in {captured - started:.1f} s, planned in {planned - captured:.1f} s, "
        f"{found.verdict} in {took:.1f} s {found.reason}"
    )
    return 0 if found.verdict == "proved" and took <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
