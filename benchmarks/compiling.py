"""Time from a model to a kernel, by depth.

    python -m benchmarks.compiling 8 30 80

A Llama of 576 wide (9/3 heads, 1536, 49152 tied) with so many layers, random weights; each depth in
a process of its own with an empty cache of kernels, several times, the median of each stage:
torch's capture, our planning, the C++ compiler, and placing the weights in large pages. What has to
be constant in depth is the compiler's; the rest goes through every layer.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import workers
from benchmarks.record import save, table
from quire.capture.decode import capture_decode
from quire.kernel.compile import compile_program
from quire.runtime import build
from quire.runtime.native import NativeKernel

STAGES = ("capture", "plan", "compile", "place")


def measure(item: workers.Item) -> workers.Item:
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=item["layers"],
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    marks = [time.perf_counter()]
    step = capture_decode(model, 4096, 8)
    marks.append(time.perf_counter())
    longest = {s.name: 8 for s in step.program.symbols}
    plan = compile_program(step.program, "", "depth", longest)
    marks.append(time.perf_counter())
    build.library(plan.source)
    marks.append(time.perf_counter())
    NativeKernel(plan, threads=2)
    marks.append(time.perf_counter())
    spans = [b - a for a, b in itertools.pairwise(marks)]
    return dict(zip(STAGES, spans, strict=True)) | {"source_bytes": len(plan.source)}


HEAD = ("layers", *(f"{s} s" for s in STAGES), "all but capture s", "source KiB")


def summary(row: dict[str, Any]) -> list[object]:
    middle = [
        statistics.median(s[k] for s in row["samples"]) if k in row["samples"][0] else None
        for k in STAGES  # older rows place within compile
    ]
    return [
        row["layers"], *("–" if m is None else f"{m:.2f}" for m in middle),
        f"{sum(filter(None, middle[1:])):.2f}",
        f"{row['samples'][0]['source_bytes'] / 1024:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("layers", nargs="*", type=int, default=[8, 30, 80])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        workers.serve(given.worker, measure)
        return
    rows = [{"key": f"{n} layers", "layers": n, "samples": []} for n in given.layers]
    for _ in range(given.rounds):
        for row in rows:
            with tempfile.TemporaryDirectory() as cache:
                fresh = os.environ | {"QUIRE_CACHE": cache}
                item = {"layers": row["layers"]}
                row["samples"] += workers.answers("benchmarks.compiling", [item], 1, fresh)
            print(table(HEAD, [summary(row)]).splitlines()[-1], flush=True)
    save("compiling", rows, {"device": "cpu"})
    print(table(HEAD, [summary(row) for row in rows]))


if __name__ == "__main__":
    main()
