"""Train a small Llama on a sequence spread over ranks: `torchrun --nproc-per-node 2 THIS`.

Prints the plan and the loss of each step, which is that of one process.
"""

from __future__ import annotations

import argparse
from datetime import timedelta

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

import quire


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq", type=int, default=4096, help="tokens in the sequence")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=5))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    kind = "cuda" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    mesh = dist.init_device_mesh(kind, (ranks,), mesh_dim_names=("sp",))

    torch.manual_seed(0)  # the same weights and data on every rank
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=options.seq,
        use_cache=False,
    )
    tokens = torch.randint(512, (1, options.seq), device=kind)
    batch = {"input_ids": tokens, "labels": tokens}
    model = LlamaForCausalLM(config).to(kind)
    model = quire.shard(model, batch, mesh=mesh)
    if rank == 0:
        print(model.plan.explain())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(options.steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
