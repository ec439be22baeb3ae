"""The planner against all plans there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quire
import quire.flow.rules
from quire.capture.export import capture
from quire.cost.machine import REFERENCE
from quire.cost.model import with_slack
from quire.plan import chunk
from quire.plan.chunk import Choice, ChunkPlanner

from ..apply.models import Call


def mlp(m: Any, x: Tensor) -> Tensor:
    return x + m.down(F.gelu(m.up(x)))


def attention(m: Any, x: Tensor) -> Tensor:
    h = m.up(x)
    return torch.softmax(h @ h.transpose(0, 1), -1) @ m.up(x)


def branches(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    a = torch.exp(m.up(x))
    b = torch.sin(a)
    return (a * b).sum(-1), m.down(b)


def large(m: Any, x: Tensor) -> Tensor:
    """Large enough for a smaller part to win by staying in the cache."""
    return torch.tanh(torch.sigmoid(torch.exp(x) * 2.0) + x).mean(-1)


def layers(**sizes: int) -> dict[str, nn.Module]:
    return {"up": nn.Linear(8, 64), "down": nn.Linear(64, 8), **sizes}  # type: ignore[dict-item]


GRAPHS: dict[str, tuple[Callable[..., Any], tuple[int, ...], str]] = {
    "mlp": (mlp, (37, 8), "cpu"),
    "attention": (attention, (301, 8), "cpu"),
    "branches": (branches, (101, 8), "cpu"),
    "large": (large, (8192, 4096), "meta"),
}


@lru_cache
def planner_of(name: str) -> ChunkPlanner:
    function, shape, device = GRAPHS[name]
    model = Call(function, **layers()).to(device).eval()
    program = capture(model, (torch.empty(shape, device=device),))
    return ChunkPlanner(program, REFERENCE, {})


def options(planner: ChunkPlanner, budget: int) -> list[list[Choice]]:
    """For each step the ways to run up to and with it, as far as they fit the budget."""
    found: list[list[Choice]] = []
    for j in range(1, len(planner.order) + 1):
        rows = [planner.whole[j - 1]]
        for c in planner.candidates[j - 1]:
            i = j - c.length
            if i < 0:
                continue
            held = planner.live.before[i] + c.held
            rows += [
                Choice(i, j, held + c.scratch(n), c.seconds(n), c, n) for n in c.choices()
            ]  # fmt: skip
        found.append([r for r in rows if with_slack(r.peak) <= budget])
    return found


def segmentations(rows: list[list[Choice]], end: int) -> Iterator[tuple[Choice, ...]]:
    if end == 0:
        yield ()
        return
    for last in rows[end - 1]:
        for before in segmentations(rows, last.start):
            yield (*before, last)


def best_of_each(rows: list[list[Choice]]) -> list[list[Choice]]:
    """Of the parts of one region only the fastest: the rest cannot be in the fastest plan."""
    kept = []
    for choices in rows:
        best: dict[int, Choice] = {}
        for c in choices:
            key = id(c.candidate)
            if key not in best or c.seconds < best[key].seconds:
                best[key] = c
        kept.append(list(best.values()))
    return kept


def budgets(planner: ChunkPlanner) -> list[int]:
    low, _ = planner.floor()
    high = planner.baseline_bytes
    return [low, *(low + (high - low) * k // 5 for k in (1, 3)), high]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_fastest_of_all_plans(name: str) -> None:
    planner = planner_of(name)
    count = 0
    for budget in budgets(planner):
        rows = best_of_each(options(planner, budget))
        plans = list(itertools.islice(segmentations(rows, len(planner.order)), 400_000))
        assert len(plans) < 400_000
        count += len(plans)
        fastest = min(sum(c.seconds for c in plan) for plan in plans)
        chosen = planner.plan(budget)
        assert chosen is not None
        assert sum(c.seconds for c in chosen) == pytest.approx(fastest, rel=1e-12)
    assert count > 20


@pytest.mark.parametrize("name", GRAPHS)
def test_the_floor_is_the_least_budget_that_fits(name: str) -> None:
    planner = planner_of(name)
    low, choices = planner.floor()
    assert with_slack(max(c.peak for c in choices)) == low
    assert planner.plan(low - 1) is None
    rows = options(planner, low - 1)
    reached = {0}
    for j, choices_to in enumerate(rows, 1):
        if any(c.start in reached for c in choices_to):
            reached.add(j)
    assert len(planner.order) not in reached


@pytest.mark.parametrize("name", GRAPHS)
def test_choices_follow_each_other_and_fit(name: str) -> None:
    planner = planner_of(name)
    seconds = []
    for budget in budgets(planner):
        choices = planner.plan(budget)
        assert choices is not None
        assert [c.start for c in choices] == [0, *(c.end for c in choices[:-1])]
        assert choices[-1].end == len(planner.order)
        assert all(c.peak <= budget for c in choices)
        seconds.append(sum(c.seconds for c in choices))
    assert seconds == sorted(seconds, reverse=True)


def test_no_budget_is_the_fastest_plan() -> None:
    planner = planner_of("large")
    fastest = planner.plan(None)
    assert fastest is not None
    assert sum(c.seconds for c in fastest) < planner.baseline_seconds
    # Splitting is a speed tool, too: no fresh pages for each intermediate.
    assert any(c.candidate is not None for c in fastest)


def test_equal_layers_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk, "WINDOW", 12)

    def planner(count: int) -> ChunkPlanner:
        model = nn.Sequential(*(Call(mlp, **layers()) for _ in range(count))).eval()
        return ChunkPlanner(capture(model, (torch.empty(37, 8),)), REFERENCE, {})

    few, many = planner(6), planner(16)
    kinds = [{id(c) for found in p.candidates for c in found} for p in (few, many)]
    assert len(kinds[0]) == len(kinds[1])
    used = [id(c.candidate) for c in many.floor()[1] if c.candidate is not None]
    assert len(used) >= 16 > len(set(used))


def test_a_state_read_through_a_view_is_written_over() -> None:
    """The projection of an attention is written over its queries, read with heads first."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.o = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k = (f(x).view(1, -1, 2, 4).transpose(1, 2) for f in (self.q, self.k))
            mixed = nn.functional.scaled_dot_product_attention(q, k, k)
            return self.o(mixed.transpose(1, 2).reshape(x.shape))

    model, x = Attention().eval(), torch.randn(1, 512, 8)
    planner = ChunkPlanner(capture(model, (x,)), REFERENCE, {})
    assert planner.floor()[0] < 3.5 * x.nbytes, "q, k and a part, with no fourth tensor beside them"


def test_a_pointwise_step_is_not_written_over_what_it_reads_in_another_order() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.exp(x)
            return z + z.transpose(1, 2)

    model, x = Symmetric(), torch.randn(6, 40, 40)
    small = quire.chunk(model, (x,), memory="min")
    torch.testing.assert_close(small(x), model(x))
