"""Activation memory of a training step on each rank, measured, against one process's and the
plan's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch import Tensor
from torch.distributed.fsdp import fully_shard

import quire
from quire.capture.export import from_exported
from quire.capture.training import export_training
from quire.measure import allocated
from quire.plan.shard.head import only_losses
from quire.plan.shard.needs import STATE_BYTES, WHOLE_BYTES
from quire.runtime.sharded import shard_tree
from quire.sharding import built, plan_shards, topology_of
from tests.ranks import mesh

TOKENS = 16_384


def _llama(
    words: int, tokens: int, *, layers: int = 3, inner: int = 128
) -> tuple[Any, dict[str, Tensor]]:
    """A small Llama, the same on all ranks, and a batch of one sequence."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=tokens,
        use_cache=False,
    )
    ids = torch.randint(words, (1, tokens))
    return hf.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _peak(ranks: int) -> int:
    """Bytes above parameters, their gradients and the batch; 0 where a rank has nothing to do."""
    if ranks == 1 and dist.get_rank():
        return 0
    model, batch = _llama(64, TOKENS, layers=2)
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


PLANNED = 4096


def _predicted(shares: list[float]) -> list[tuple[int, int, int, set[str]]]:
    """For each budget, as a share of what is needed without one: the bytes predicted, measured,
    the parts rows go in, and what layers do."""
    model, batch = _llama(512, PLANNED, inner=1024)
    program = only_losses(from_exported(export_training(model, (), batch)))
    links, ways = topology_of(None, "cpu"), ["ring"]
    free = plan_shards(program, 4, links, ways=ways).memory  # type: ignore[arg-type]
    # The states counted are spread by FSDP, which is not here; a layer's gradients are.
    layer = 4 * sum(p.numel() for p in model.model.layers[0].parameters())
    found = []
    for share in shares:
        budget = int(free.peak * share)
        plan = plan_shards(program, 4, links, ways=ways, budget=budget)  # type: ignore[arg-type]
        small: Any = shard_tree(
            model, mesh(4), lambda *_, plan=plan: built(model, program, plan), (), batch
        )
        for parameter in small.parameters():
            parameter.grad = torch.zeros_like(parameter)

        def step(small: Any = small) -> None:
            small(**batch).loss.backward()

        measured = allocated(step)[0]
        memory = plan.memory
        assert memory.peak <= budget
        kinds = {how for _, how in memory.regions}
        found.append((memory.peak - memory.states + layer, measured, memory.parts, kinds))
        for parameter in model.parameters():
            parameter._post_accumulate_grad_hooks = None
    return found


def test_a_plan_bounds_what_is_measured(ranks: Any) -> None:
    """With all kept, rows in parts, and layers made again: measured never above the plan, and no
    more than a third below it. Just below the last budget there is no plan: two layers' weights and
    gradients, and those outside layers, are counted whole."""
    for answers in ranks.run(_predicted, shares=[1.0, 0.3, 0.138]):
        assert answers[0][2] == 1 < answers[1][2]
        assert "recompute" in answers[2][3] and answers[2][2] > 1
        for predicted, measured, *_ in answers:
            assert 2 / 3 * predicted <= measured <= predicted
        assert answers[0][1] > 2 * answers[1][1] > 2 * answers[2][1]


def _fetched() -> tuple[int, int, int]:
    """Under FSDP2, each layer and the rest by itself: bytes predicted, measured, and those of the
    weights and gradients outside layers, all of them fp32."""
    model, batch = _llama(4096, 128)
    small: Any = quire.shard(
        model, batch, mesh=mesh(4), reduce_gradients=False, outputs="loss", verify=False
    )
    memory = small.plan.memory
    spread = STATE_BYTES * memory.needs.parameters // 4
    # What is brought here is counted in half precision.
    predicted = memory.peak - spread + (memory.states - spread)
    for layer in small.model.layers:
        fully_shard(layer, mesh=mesh(4))
    fully_shard(small, mesh=mesh(4))

    def step() -> None:
        small(**batch).loss.backward()

    step()
    return predicted, allocated(step)[0], 2 * WHOLE_BYTES * memory.needs.apart


def test_what_lies_outside_layers_is_held_whole(ranks: Any) -> None:
    """Embeddings and head, weights and gradients: most of what is measured here."""
    for predicted, measured, apart in ranks.run(_fetched):
        assert apart < measured <= predicted <= 1.5 * measured
