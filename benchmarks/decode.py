"""Decode speed of the fused kernel against the bandwidth of the machine, in one run.

    python -m benchmarks.decode 135m --weights bfloat16 int8 int4 --batch 1 4 16 32
    python -m benchmarks.decode 1.1b
    python -m benchmarks.decode 135m --positions 16 128 1024 4000

Seeded random weights. Each sample reads the weights' number of bytes with all threads (a sum, the
read part of STREAM) and then times three steps, the last of which counts; the figures are medians.
`share` is the bytes of weights and live keys and values a second over that bandwidth. With
`--eager` the model's own step with transformers' static cache is timed as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from benchmarks.host import describe
from quire.capture.decode import DecodeStep, capture_decode
from quire.kernel.compile import compile_program
from quire.runtime.native import NativeKernel

SHAPES = {
    "135m": dict(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "1.1b": dict(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4,
    ),
}  # fmt: skip


def read_seconds(held: torch.Tensor) -> float:
    started = time.perf_counter()
    held.sum()
    return time.perf_counter() - started


def step_seconds(step: Callable[[], Any]) -> float:
    for _ in range(3):
        started = time.perf_counter()
        step()
        seconds = time.perf_counter() - started
    return seconds


def bound_step(
    kernel: NativeKernel, step: DecodeStep, batch: int, position: int
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """A step of `batch` rows at `position`, and the tensors it works on."""
    inputs = [
        torch.zeros(batch, 1, dtype=torch.long),
        torch.full((batch,), position),
        torch.zeros(batch, dtype=torch.long),
        *(torch.zeros(batch, *k, dtype=step.dtype) for k in step.key_shapes),
        *(torch.zeros(batch, *v, dtype=step.dtype) for v in step.value_shapes),
    ]
    out = kernel.plan.lowered.outputs[0]
    logits = torch.empty(batch, int(out.shape[-1]))
    for item, tensor in zip(step.program.users_inputs(), inputs, strict=True):
        kernel.bind(item.target, tensor)
    kernel.bind(out.target, logits)
    return lambda: kernel.run([batch]), [*inputs, logits]


def eager_step(model: Any, batch: int, position: int) -> Callable[[], Any]:
    cache = StaticCache(config=model.config, max_cache_len=position + 64)
    with torch.inference_mode():
        model(torch.zeros(batch, position, dtype=torch.long), past_key_values=cache)
    token = torch.zeros(batch, 1, dtype=torch.long)

    def run() -> None:
        with torch.inference_mode():
            model(token, past_key_values=cache, logits_to_keep=1)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--weights", nargs="+", default=["bfloat16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--positions", nargs="+", type=int, default=[128])
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    length = max(options.positions) + 8
    config = LlamaConfig(**SHAPES[options.shape], max_position_embeddings=length)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    started = time.perf_counter()
    step = capture_decode(model, length, max(options.batch))
    capture = time.perf_counter() - started
    rows = []
    for weights in options.weights:
        scheme = "" if weights == "bfloat16" else weights
        started = time.perf_counter()
        longest = {s.name: max(options.batch) for s in step.program.symbols}
        plan = compile_program(step.program, scheme, options.shape, longest)
        planned = time.perf_counter()
        kernel = NativeKernel(plan, threads=options.threads)
        compiled = time.perf_counter()
        weight_bytes = kernel.streamed_bytes
        held = torch.ones(weight_bytes // 4)
        for batch in options.batch:
            for position in options.positions:
                run, _kept = bound_step(kernel, step, batch, position)
                caches = (*step.key_shapes, *step.value_shapes)
                cached = sum(h * d for h, _, d in caches) * 2 * batch * (position + 1)
                eager = eager_step(model, batch, position) if options.eager else None
                reads, steps, eagers = [], [], []
                for _ in range(options.samples):
                    reads.append(read_seconds(held))
                    steps.append(step_seconds(run))
                    if eager is not None:
                        eagers.append(step_seconds(eager))
                rate = weight_bytes / statistics.median(reads)
                seconds = statistics.median(steps)
                row = {
                    "shape": options.shape,
                    "weights": weights,
                    "batch": batch,
                    "position": position,
                    "weight_bytes": weight_bytes,
                    "cache_bytes": cached,
                    "read_bytes_per_second": rate,
                    "step_seconds": seconds,
                    "share": (weight_bytes + cached) / seconds / rate,
                    "tokens_per_second": batch / seconds,
                    "eager_seconds": statistics.median(eagers) if eagers else None,
                    "capture_seconds": capture,
                    "plan_seconds": planned - started,
                    "compile_seconds": compiled - planned,
                    "samples": {"read": reads, "step": steps, "eager": eagers},
                }
                rows.append(row)
                beside = f", eager {row['eager_seconds'] / seconds:.1f} ×" if eagers else ""
                print(
                    f"{options.shape} {weights} batch {batch} position {position}: "
                    f"{seconds * 1e3:.2f} ms, {row['tokens_per_second']:.1f} tokens/s, "
                    f"{row['share']:.0%} of {rate / 1e9:.1f} GB/s{beside}",
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps({"host": describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
