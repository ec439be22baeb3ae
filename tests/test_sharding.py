"""`quire.shard` on 2 and 4 Gloo ranks against one process: loss and every parameter's gradient."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import nn

import quire
from quire.capture.export import from_exported
from quire.capture.program import Program
from quire.capture.training import export_training
from quire.errors import BudgetError, InputError
from quire.plan.shard.head import only_losses
from quire.runtime.sharded import shard_tree
from quire.runtime.wire import Wire
from quire.sharding import built, plan_shards, topology_of
from tests.ranks import mesh
from tests.shard_models import FAMILIES, MORE, build

WAYS = ("ulysses", "ring", "gathered", "hybrid")


_programs: dict[Any, Program] = {}


def _shard(
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    ranks: int,
    way: str | None,
    key: Any,
    parts: bool = False,
    memory: int | None = None,
) -> Any:
    """What quire.shard does, with the capture, which is most of its time, done once for a key."""

    def make(model: nn.Module, args: tuple[Any, ...], kwargs: Any, number: int) -> Any:
        if key not in _programs:
            _programs[key] = from_exported(export_training(model, args, kwargs))
        program = _programs[key]
        ways: Any = None if way is None else [way]
        topology = topology_of(None, "cpu")
        return built(
            model,
            program,
            plan_shards(program, ranks, topology, ways=ways, budget=memory),
            number=number,
        )

    return shard_tree(model, mesh(ranks), make, (), batch, parts=parts)


def _sharded(
    family: str,
    size: int,
    ranks: int,
    way: str | None,
    packed: bool = False,
    dtype: torch.dtype = torch.float32,
    part: bool = False,
) -> dict[str, Any]:
    model, batch = build(family, size, dtype, packed)
    small = _shard(model, batch, ranks, way, (family, size, packed, dtype), part)
    assert isinstance(small, type(model))
    assert list(small.state_dict()) == list(model.state_dict())
    if part:
        here = mesh(ranks)
        layout = small.plan.layout(size)
        rows = torch.cat(
            [torch.arange(start, start + n) for _, start, n in layout.runs(here.get_local_rank())]
        )
        batch = {k: v[:, rows] for k, v in batch.items()}
    with Wire() as wire:
        loss = small(**batch).loss
        loss.backward()
    grads = {n: p.grad.clone() for n, p in small.named_parameters() if p.grad is not None}
    return {
        "loss": loss.detach(),
        "grads": grads,
        "ways": [c.way for c in small.plan.chosen],
        "calls": dict(wire.calls),
        "notes": small.plan.notes,
        "sent": wire.total,
        "planned": sum(c.total_bytes for c in small.plan.chosen),
    }


def _alone(family: str, size: int, packed: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
    model, batch = build(family, size, torch.float32, packed)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _check(answers: list[dict[str, Any]], loss: torch.Tensor, grads: dict[str, Any]) -> None:
    for answer in answers:
        assert abs(answer["loss"] - loss) <= 1e-5 * abs(loss)
        assert answer["grads"].keys() == grads.keys()
        largest = max(g.abs().max() for g in grads.values())
        for name, grad in grads.items():
            error = (answer["grads"][name] - grad).norm()
            # A gradient that is zero but for rounding (a key's bias) is measured by the others.
            assert error <= 1e-5 * grad.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_equal_to_one_process(ranks: Any, family: str, way: str) -> None:
    """Every family and way on 4 ranks, at a length that is prime and not divisible by them."""
    answers = ranks.run(_sharded, family=family, size=37, ranks=4, way=way)
    assert all(a["ways"] == [way] * len(a["ways"]) for a in answers)
    assert not any(a["notes"] for a in answers), answers[0]["notes"]
    _check(answers, *_alone(family, 37))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_by_the_planners_choice(ranks: Any, family: str) -> None:
    answers = ranks.run(_sharded, family=family, size=37, ranks=2, way=None)
    _check(answers, *_alone(family, 37))


@pytest.mark.parametrize("family", MORE)
def test_two_lengths_and_space_and_time(ranks: Any, family: str) -> None:
    """Encoder and decoder spread over the same ranks, cross attention too; a video's patches."""
    answers = ranks.run(_sharded, family=family, size=13, ranks=4, way=None)
    assert {"ulysses", "ring", "gathered", "hybrid"} & set(answers[0]["ways"])
    _check(answers, *_alone(family, 13))


@pytest.mark.parametrize("way", WAYS)
def test_packed_documents(ranks: Any, way: str) -> None:
    answers = ranks.run(_sharded, family="llama", size=37, ranks=4, way=way, packed=True)
    _check(answers, *_alone("llama", 37, packed=True))


@pytest.mark.parametrize("way", ["ulysses", "ring"])
def test_bf16(ranks: Any, way: str) -> None:
    """Within the rounding of bf16 at the model's depth, against the fp32 model."""
    loss, grads = _alone("llama", 32)
    eps = torch.finfo(torch.bfloat16).eps
    for answer in ranks.run(
        _sharded, family="llama", size=32, ranks=4, way=way, dtype=torch.bfloat16
    ):
        assert abs(answer["loss"].float() - loss) <= 4 * eps * abs(loss)
        total = sum((answer["grads"][n].float() - g).square().sum() for n, g in grads.items())
        whole = sum(g.square().sum() for g in grads.values())
        # Two layers of some ten rounded ops each, forward and back: errors add as their root.
        assert total.sqrt() <= 2 * (40**0.5) * eps * whole.sqrt()


def test_this_ranks_part_does_as_well_as_the_whole_batch(ranks: Any) -> None:
    answers = ranks.run(_sharded, family="llama", size=37, ranks=4, way="ulysses", part=True)
    _check(answers, *_alone("llama", 37))


def _wrong_part() -> str:
    model, batch = build("llama", 37)
    small = _shard(model, batch, 4, "ulysses", ("llama", 37, False, torch.float32), True)
    with pytest.raises(InputError) as found:
        small(**{k: v[:, :5] for k, v in batch.items()})
    return str(found.value)


def test_a_part_of_another_size_is_refused(ranks: Any) -> None:
    for text in ranks.run(_wrong_part):
        assert "(2, 5)" in text and "this rank's rows" in text


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_sent_but_attention_loss_and_gradients(ranks: Any, way: str) -> None:
    """Bytes at the collectives are the plan's, the loss's two numbers each way, the gradients'."""
    own = {
        # Two layers, there and back, forward and backward.
        "ulysses": {"all_to_all_single": 8},
        # Three hops forward; in backward again, and four of the gradients, which go home.
        "ring": {"ring": 12, "ring gradients": 8},
        "gathered": {"all_gather_into_tensor": 2, "reduce_scatter_tensor": 2},
        "hybrid": {"all_to_all_single": 8, "ring": 4, "ring gradients": 4},
    }[way]
    parameters = sum(p.numel() for p in build("llama", 37)[0].parameters())
    for answer in ranks.run(_sharded, family="llama", size=37, ranks=4, way=way):
        # The loss forward and backward, and one bucket of gradients.
        assert answer["calls"] == {**own, "all_reduce": 3}
        loss, gradients = 2 * (2 * 8 * 3 // 4), 2 * 4 * parameters * 3 // 4
        assert answer["sent"] == answer["planned"] + loss + gradients


def _steps(ranks: int, ways: Any = None) -> list[float]:
    """Losses of twenty steps of AdamW."""
    model, batch = build("llama", 37)
    small = model if ranks == 1 else quire.shard(model, batch, mesh=mesh(ranks), ways=ways)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = small(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_twenty_steps_follow_the_same_curve(ranks: Any) -> None:
    alone = _steps(1)
    assert alone[-1] < 0.6 * alone[0]
    for losses in ranks.run(_steps, ranks=4):
        assert losses == pytest.approx(alone, rel=1e-4)


def _within(memory: int | None) -> tuple[list[str], int, dict[str, Any]]:
    model, batch = build("llama", 37)
    small = _shard(model, batch, 4, None, ("llama", 37, False, torch.float32), memory=memory)
    loss = small(**batch).loss
    loss.backward()
    grads = {n: p.grad for n, p in small.named_parameters() if p.grad is not None}
    kept = [how for _, how in small.plan.memory.regions]
    found = {"loss": loss.detach(), "grads": grads, "peak": small.plan.memory.peak}
    return kept, small.plan.memory.parts, found


def test_a_budget_recomputes_and_changes_no_gradient(ranks: Any) -> None:
    free, parts, answer = ranks.run(_within, memory=None)[0]
    assert (free, parts) == (["keep", "keep"], 1)
    answers = ranks.run(_within, memory=answer["peak"] - 1)
    for kept, parts, found in answers:
        assert kept != ["keep", "keep"] or parts > 1
        assert found["peak"] < answer["peak"]
    _check([found for *_, found in answers], *_alone("llama", 37))


def _rows_in_parts() -> dict[str, Any]:
    """The least memory that there is a plan for."""
    model, batch = build("gpt2", 37)
    key = ("gpt2", 37, False, torch.float32)
    program = _programs.setdefault(key, from_exported(export_training(model, (), batch)))
    links = topology_of(None, "cpu")
    low, high = 0, plan_shards(program, 4, links).memory.peak
    while high - low > high // 200:
        half = (low + high) // 2
        try:
            plan_shards(program, 4, links, budget=half)
            high = half
        except BudgetError:
            low = half
    small = _shard(model, batch, 4, None, key, memory=high)
    assert small.plan.memory.parts > 1
    assert all(how != "keep" for _, how in small.plan.memory.regions)
    assert "ranks.in_parts(rows, 10, " in small.source("transformer.h.0")
    loss = small(**batch).loss
    loss.backward()
    grads = {n: p.grad for n, p in small.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "grads": grads}


def test_layers_in_parts_of_the_rows(ranks: Any) -> None:
    """Ops between attentions on some rows at a time, recomputed within recomputed layers."""
    _check(ranks.run(_rows_in_parts), *_alone("gpt2", 37))


def _in_parts(parts: int) -> dict[str, Any]:
    """Scores and loss in parts of the rows; whatever else the model gives is None."""
    model, batch = build("llama", 37)

    def make(model: nn.Module, args: tuple[Any, ...], kwargs: Any, number: int) -> Any:
        program = only_losses(from_exported(export_training(model, args, kwargs)))
        plan = plan_shards(program, 4, topology_of(None, "cpu"))
        assert plan.head
        return built(model, program, attrs.evolve(plan, head_parts=parts), number=number)

    small: Any = shard_tree(model, mesh(4), make, (), batch)
    found = small(**batch)
    assert found.logits is None
    assert "cross_entropy_in_parts" in small.source("")
    found.loss.backward()
    grads = {n: p.grad for n, p in small.named_parameters() if p.grad is not None}
    return {"loss": found.loss.detach(), "grads": grads}


def test_scores_and_loss_in_parts_of_the_rows(ranks: Any) -> None:
    """Ten rows of two sequences a rank, in three parts that are not equal."""
    _check(ranks.run(_in_parts, parts=3), *_alone("llama", 37))
