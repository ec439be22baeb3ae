"""Updates of a state through a product of its own projections, in halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import quire
from quire.apply.halves import halve
from quire.capture.export import export, from_exported
from quire.capture.program import Program
from quire.cost.model import Model
from quire.pipeline import Planning
from quire.plan.halves import own_products

from ..rewrite.programs import calls, check_equal
from .test_stages import Attention

aten: Any = torch.ops.aten


class Triangle(nn.Module):
    """A triangle multiplication (AlphaFold 2, algorithms 11 and 12) of a pair state [1, n, n, c],
    along its rows or its columns."""

    def __init__(self, width: int = 16, *, rows: bool = True) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.a, self.b, self.gate, self.out = (nn.Linear(width, width) for _ in range(4))
        self.rows = rows

    def forward(self, z: Tensor) -> Tensor:
        h = self.norm(z)
        a, b = self.a(h), torch.sigmoid(self.b(h))
        left, right = ((0, 3, 1, 2), (0, 3, 2, 1)) if self.rows else ((0, 3, 2, 1), (0, 3, 1, 2))
        x = torch.matmul(a.permute(left), b.permute(right)).permute(0, 2, 3, 1)
        return z + torch.sigmoid(self.gate(h)) * self.out(self.last(x))


class Pair(nn.Module):
    """Rows, then columns, of a state that is not the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(16, 16)
        self.one, self.two = Triangle(rows=True), Triangle(rows=False)

    def forward(self, z: Tensor) -> Tensor:
        return self.two(self.one(self.make(z)))


@pytest.fixture
def pair() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Pair().eval(), torch.randn(1, 96, 96, 16)


def in_stages(model: nn.Module, x: Tensor) -> tuple[Planning, Program, Model]:
    planning = Planning(from_exported(export(model, (x,))))
    stages = [v for v in planning.variants() if not v.last][1].program
    return planning, stages, planning._planner(stages, candidates=False).model


def test_both_directions_are_found_and_equal(pair: tuple[nn.Module, Tensor]) -> None:
    _, stages, model = in_stages(*pair)
    updates = own_products(model)
    assert len(updates) == 2
    halves = halve(stages, updates)
    check_equal(stages, halves, pair[1])
    assert len(calls(halves, aten.slice_scatter.default)) == 4
    assert len(calls(halves, aten.matmul.default)) == 4 * len(calls(stages, aten.matmul.default))


def test_the_last_resort_reaches_lower_than_two_states_is_proved_and_kept(
    pair: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    model, x = pair
    planning, *_ = in_stages(model, x)
    floors = {v.last: p.floor()[0] for v, p in planning.planners()}
    state = x.nbytes
    assert floors[True] < 1.9 * state < 2 * state < floors[False]
    small = quire.chunk(model, (x,), memory=floors[True])
    assert small.certificate is not None and small.certificate.verdict == "proved"
    assert {r.join for r in small.plan.regions} >= {"within"}
    torch.testing.assert_close(small(x), model(x))
    small.save(tmp_path / "small.pt2")
    torch.testing.assert_close(quire.load(tmp_path / "small.pt2")(x), small(x))


def test_it_is_not_planned_where_something_else_fits(pair: tuple[nn.Module, Tensor]) -> None:
    planning, *_ = in_stages(*pair)
    floors = {v.last: p.floor()[0] for v, p in planning.planners(last=False)}
    plan, _ = planning.plan(floors[False])
    assert not any("halves" in note for note in plan.rewrites)
    assert not any(v.last for v, _ in planning._planned)


def test_an_attention_is_no_such_update() -> None:
    model, x = Attention().eval(), torch.randn(1, 40, 32)
    assert own_products(in_stages(model, x)[2]) == []


def test_an_odd_state_has_halves_of_two_lengths(pair: tuple[nn.Module, Tensor]) -> None:
    x = torch.randn(1, 33, 33, 16)
    _, stages, model = in_stages(pair[0], x)
    halves = halve(stages, own_products(model))
    check_equal(stages, halves, x)
    stretches = [(c["start"], c["end"]) for c in calls(halves, aten.slice_scatter.default)]
    assert stretches == 2 * [(0, 17), (17, 33)]


def test_any_length_is_left_alone(pair: tuple[nn.Module, Tensor]) -> None:
    length = Dim("length", min=2, max=64)
    shapes = {"z": {1: length, 2: length}}
    captured = from_exported(export(pair[0], (torch.randn(1, 33, 33, 16),), None, shapes))
    assert not any(v.last for v in Planning(captured).variants())
