"""Stages: the programs are equal, what is read whole comes first, and cheap steps run again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quire
from quire.apply.unroll import unroll
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.plan.folds import head_folds
from quire.plan.stages import staged
from quire.rewrite import rearrange

from ..rewrite.programs import calls, check_equal

aten: Any = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


class Attention(nn.Module):
    """A pre-norm attention with a residual."""

    def __init__(self, width: int = 32, heads: int = 4, residual: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads, self.residual = heads, residual
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.o(out) if self.residual else self.o(out)


class Two(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.one, self.two = Attention(width, heads), Attention(width, heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x * 2))


def planning(model: nn.Module, x: torch.Tensor, dynamic: Any = None) -> Planning:
    return Planning(from_exported(export(model.eval(), (x,), None, dynamic)))


def of_stages(planning: Planning, *, again: bool = True) -> Program:
    whole = planning._planner(planning.first.program, candidates=False)
    return rearrange(whole.program, staged(whole.model, whole.baseline_bytes, again=again))


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("dynamic", [None, ({1: torch.export.Dim("s", min=2, max=300)},)])
def test_stages_compute_the_same(again: bool, dynamic: Any) -> None:
    x = torch.randn(1, 256, 32)
    made = planning(Two(), x, dynamic)
    after = of_stages(made, again=again)
    check_equal(made.first.program, after, x)
    if dynamic:
        check_equal(made.first.program, after, torch.randn(1, 37, 32))


def test_keys_and_values_come_before_queries_and_the_norm_runs_again() -> None:
    made = planning(Two(), torch.randn(1, 256, 32))
    norm = aten.layer_norm.default
    assert len(calls(made.first.program, norm)) == 2
    after = of_stages(made)
    assert len(calls(after, norm)) == 4
    names = [
        str(op.operands[1].node) for op in after.ops.values() if op.target is aten.linear.default
    ]
    assert [n.split("_")[-2] for n in names] == ["k", "v", "q", "o"] * 2


def test_nothing_runs_again_that_keeps_more_alive() -> None:
    """The sum of two large tensors is kept, not made again from both."""
    made = planning(Two(), torch.randn(1, 256, 32))
    adds = [op for op in of_stages(made).ops.values() if op.target is aten.add.Tensor]
    assert len(adds) == len(calls(made.first.program, aten.add.Tensor)) == 2


def test_stages_lower_the_floor() -> None:
    made = planning(Two(128, 8), torch.randn(1, 4096, 128))
    floors = [planner.floor()[0] for _, planner in made.planners()]
    assert len(floors) == 3
    assert floors[0] > floors[1] > floors[2]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dynamic", [None, ({1: torch.export.Dim("s", min=2, max=300)},)])
def test_heads_one_by_one_compute_the_same(residual: bool, dynamic: Any) -> None:
    x = torch.randn(1, 256, 32)
    made = planning(Attention(residual=residual), x, dynamic)
    whole = made._planner(made.first.program, candidates=False)
    folds = head_folds(whole.model)
    assert [int(f.size) for f in folds] == [4]
    after = unroll(whole.program, folds)
    assert len(calls(after, SDPA)) == 4
    assert {op["query"].shape[1] for op in calls(after, SDPA)} == {1}
    check_equal(whole.program, after, x)
    if dynamic:
        check_equal(whole.program, after, torch.randn(1, 41, 32))


def test_attentions_that_follow_each_other_are_all_taken_apart() -> None:
    x = torch.randn(1, 256, 32)
    whole = (made := planning(Two(), x))._planner(made.first.program, candidates=False)
    after = unroll(whole.program, head_folds(whole.model))
    assert [op["query"].shape[1] for op in calls(after, SDPA)] == [1] * 8
    check_equal(whole.program, after, x)


def test_a_sum_without_attention_is_left_alone() -> None:
    made = planning(nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)), torch.randn(9, 8))
    assert head_folds(made.original.model) == []


def test_the_lowest_plan_of_an_attention_runs() -> None:
    """The state, the normed state, and one head's keys and values are all there is at once."""
    torch.manual_seed(0)
    model, x = Two(128, 8).eval(), torch.randn(1, 4000, 128)
    small = quire.chunk(model, (x,), memory="min")
    assert small.plan.peak_bytes < 2.6 * x.nbytes
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))
