"""Activation memory of a training step on each rank, measured, against one process's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as hf

import quire
from quire.measure import allocated
from tests.ranks import mesh

TOKENS = 16_384


def _peak(ranks: int) -> int:
    """Bytes above parameters, their gradients and the batch; 0 where a rank has nothing to do."""
    if ranks == 1 and dist.get_rank():
        return 0
    config = hf.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TOKENS,
        use_cache=False,
    )
    model: Any = hf.LlamaForCausalLM(config)
    ids = torch.randint(64, (1, TOKENS))
    batch = {"input_ids": ids, "labels": ids}
    if ranks > 1:
        model = quire.shard(model, batch, mesh=mesh(ranks), ways=["ulysses", "ring"])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        model(**batch).loss.backward()

    return allocated(step)[0]


@pytest.fixture(scope="module")
def alone(ranks: Any) -> int:
    return ranks.run(_peak, ranks=1)[0]


@pytest.mark.parametrize("count", [2, 4])
def test_peak_of_a_step_falls_with_the_ranks(ranks: Any, alone: int, count: int) -> None:
    for peak in ranks.run(_peak, ranks=count):
        assert peak <= 1.1 / count * alone
