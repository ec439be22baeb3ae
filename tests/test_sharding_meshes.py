"""Data × sequence ranks: DDP and FSDP2 around a sharded model, `torch.compile`, new lengths."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import quire
from tests.ranks import mesh
from tests.shard_models import build


def _halves(rank: int | None) -> dict[str, Any]:
    """The batch of a data rank, two rows of four; all four for None."""
    torch.manual_seed(3)
    ids = torch.randint(97, (4, 37))
    rows = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    return {"input_ids": ids[rows], "labels": ids[rows]}


def _with_ddp() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model, _ = build("llama", 37)
    batch = _halves(dist.get_rank() // 2)
    small = quire.shard(model, batch, mesh=mesh(2), reduce_gradients=False)
    wrapped = DistributedDataParallel(small)
    loss = wrapped(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in small.named_parameters() if p.grad is not None}


def _with_fsdp(policy: OffloadPolicy | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients; `policy` says where the shards of parameters and gradients lie."""
    model, _ = build("llama", 37)
    batch = _halves(dist.get_rank() // 2)
    small: Any = quire.shard(model, batch, mesh=mesh(2), reduce_gradients=False)
    everyone = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in small.model.layers:
        fully_shard(layer, mesh=everyone, offload_policy=policy or OffloadPolicy())
    fully_shard(small, mesh=everyone, offload_policy=policy or OffloadPolicy())
    loss = small(**batch).loss
    loss.backward()
    grads = {n: p.grad.full_tensor() for n, p in small.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def _check(answers: list[tuple[torch.Tensor, dict[str, torch.Tensor]]]) -> None:
    model, _ = build("llama", 37)
    alone = model(**_halves(None)).loss
    alone.backward()
    # Each data rank has the loss of its half; the halves count as many tokens.
    mean = (answers[0][0] + answers[-1][0]) / 2
    assert abs(mean - alone) <= 1e-5 * abs(alone)
    for _, grads in answers:
        assert grads.keys() == dict(model.named_parameters()).keys()
        for name, p in model.named_parameters():
            assert p.grad is not None
            assert (grads[name] - p.grad).norm() <= 1e-5 * p.grad.norm(), name


def test_ddp_over_data_and_sequence_ranks(ranks: Any) -> None:
    _check(ranks.run(_with_ddp))


def test_fsdp2_over_data_and_sequence_ranks(ranks: Any) -> None:
    _check(ranks.run(_with_fsdp))


def test_fsdp2_with_its_states_on_the_host(ranks: Any) -> None:
    """As plans ask for where states fit no device; nothing to pin memory for is here."""
    _check(ranks.run(_with_fsdp, policy=CPUOffloadPolicy(pin_memory=False)))


def _new_length() -> list[tuple[float, float]]:
    if dist.get_rank() >= 2:  # two are enough
        return []
    model, batch = build("llama", 37)
    small = quire.shard(model, batch, mesh=mesh(2))
    found = []
    for size in (37, 22, 37):
        _, batch = build("llama", size)
        found.append((float(small(**batch).loss), float(model(**batch).loss)))
    return found


def test_a_new_length_is_planned_and_kept(ranks: Any) -> None:
    answers = ranks.run(_new_length)
    assert [len(a) for a in answers] == [3, 3, 0, 0]
    for answer in answers:
        for sharded, whole in answer:
            assert abs(sharded - whole) <= 1e-5 * abs(whole)


def _evaluated() -> tuple[torch.Tensor, torch.Tensor] | None:
    """A prefill: no labels, no gradient, logits of all rows."""
    if dist.get_rank() >= 2:
        return None
    model, batch = build("llama", 37)
    model.eval()
    ids = batch["input_ids"]
    with torch.no_grad():
        small = quire.shard(model, {"input_ids": ids}, mesh=mesh(2), outputs="whole")
        return small(input_ids=ids).logits, model(input_ids=ids).logits


def test_prefill_without_gradients(ranks: Any) -> None:
    for sharded, whole in ranks.run(_evaluated)[:2]:
        torch.testing.assert_close(sharded, whole, rtol=1e-4, atol=1e-5)


def _compiled() -> tuple[list[float], list[Any]] | None:
    if dist.get_rank() >= 2:
        return None
    model, batch = build("llama", 37)
    small = quire.shard(model, batch, mesh=mesh(2))
    losses, grads = [], []
    for call in (small, torch.compile(small, backend="aot_eager")):
        small.zero_grad()
        loss = call(**batch).loss
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append({n: p.grad.clone() for n, p in small.named_parameters()})
    return losses, grads


def test_torch_compile_takes_the_result(ranks: Any) -> None:
    for losses, (eager, compiled) in ranks.run(_compiled)[:2]:
        assert abs(losses[0] - losses[1]) <= 1e-6 * losses[0]
        for name, grad in eager.items():
            torch.testing.assert_close(compiled[name], grad, rtol=1e-5, atol=1e-7)
