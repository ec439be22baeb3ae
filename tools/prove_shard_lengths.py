"""Time of the proof of a sharded training step at every length of a range at once.

    python tools/prove_shard_lengths.py [RANKS] [LONGEST] [LAYERS] [VOCABULARY]

A small Llama on the meta device, each way of attention, from the least length at which every rank
has rows of each of its blocks to LONGEST tokens. Ends with 1 if one is not proved.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quire
from quire.verify.shard.free import least
from quire.verify.shard.order import Order

WAYS: tuple[Any, ...] = ("ulysses", "ring", "gathered", "hybrid")


def main(ranks: int = 8, longest: int = 1 << 17, layers: int = 2, vocabulary: int = 97) -> int:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=longest,
        use_cache=False,
    )
    low, worst = least(Order(longest, ranks, ranks)), 0
    with torch.device("meta"):
        model = LlamaForCausalLM(config).train()
        ids = torch.zeros((1, 13), dtype=torch.int64)
    for way in WAYS:
        started = time.perf_counter()
        found = quire.prove_shard(
            model,
            {"input_ids": ids, "labels": ids},
            ranks=ranks,
            ways=[way],
            lengths=(low, longest),
        )
        took = time.perf_counter() - started
        print(
            f"{way}, {ranks} ranks, {low} to {longest} tokens: {found.verdict} in "
            f"{found.seconds:.1f} s, with capture and plan {took:.1f} s {found.reason}",
            flush=True,
        )
        worst = max(worst, found.verdict != "proved")
    return int(worst)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
