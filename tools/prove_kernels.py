"""Decode kernels of large models: captured on the meta device, emitted, and proved.

    python tools/prove_kernels.py [llama-7b llama-70b mixtral-8x7b …] [--layers N]

No weight is written. Prints the seconds of each step; what is measured is `prove` alone.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig

from quire.capture.decode import capture_decode
from quire.fusing import tables_of
from quire.kernel.compile import compile_program
from quire.verify.kernel.prove import prove_kernel

CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": GPT2Config,
    "llama-1b": lambda: LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000,
    ),
    "llama-7b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000,
    ),
    "llama-8b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    ),
    "gemma2-9b": lambda: Gemma2Config(
        hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16,
        num_key_value_heads=8, head_dim=256,
    ),
    "mixtral-8x7b": lambda: MixtralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    ),
    "llama-70b": lambda: LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[], metavar="model")
    parser.add_argument("--layers", type=int, default=0, help="instead of the model's own")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    for name in options.models or CONFIGS:
        config = CONFIGS[name]()
        if options.layers:
            config.num_hidden_layers = options.layers
        marks = [time.perf_counter()]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
            step = capture_decode(model, options.length, options.batch)
        marks.append(time.perf_counter())
        longest = {s.name: options.batch for s in step.program.symbols}
        plan = compile_program(step.program, "", name, longest)
        marks.append(time.perf_counter())
        found = prove_kernel(plan.program, plan.source, tables_of(plan))
        marks.append(time.perf_counter())
        took = [b - a for a, b in itertools.pairwise(marks)]
        print(
            f"{name}: {found.verdict}{' ' + found.reason[:500] if found.reason else ''}; "
            f"captured in {took[0]:.1f} s, emitted in {took[1]:.1f} s, proved in {took[2]:.1f} s, "
            f"{len(found.claims)} claims, {len(plan.rendered.slots)} phases",
            flush=True,
        )
        if found.verdict != "proved":
            raise SystemExit(1)


if __name__ == "__main__":
    main()
