"""Meshes that are not here: torch's fake process group, and tensors without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import quire

TOKENS = 1 << 17


def _sharded(ranks: int, rank: int) -> Any:
    """What rank `rank` runs, and the shapes it made in one step."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("sp",))
        config = hf.LlamaConfig(
            vocab_size=128,
            hidden_size=1024,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=64,
            num_key_value_heads=8,
            max_position_embeddings=TOKENS,
            use_cache=False,
        )
        with torch.device("meta"):
            model = hf.LlamaForCausalLM(config)
            ids = torch.zeros(1, TOKENS, dtype=torch.int64)
        batch = {"input_ids": ids, "labels": ids}
        small: Any = quire.shard(model, batch, mesh=mesh, links="h100", memory="80GB", verify=False)
        out = small(**batch)
        out.loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
        names = ["", *(n for n, _ in small.named_modules() if n)]
        return out.logits.shape[1], small.plan.chosen[0].way, [small.source(n) for n in names]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [64, 1024])
def test_every_rank_of_many_runs_one_text(ranks: int) -> None:
    """Planned, written and run forward and backward for the first and the last rank."""
    rows, way, text = _sharded(ranks, 0)
    assert rows == TOKENS // ranks and way == "hybrid"
    assert _sharded(ranks, ranks - 1) == (rows, way, text)
