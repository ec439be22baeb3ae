"""Marks of steps: equal where steps may share a plan, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.capture.export import capture
from quire.cost.machine import REFERENCE
from quire.plan.chunk import ChunkPlanner
from quire.plan.signature import signatures

from ..apply.models import Block, Call


def marks(
    function: Callable[..., Any], *args: Tensor, window: int = 96, **parts: Any
) -> dict[str, int]:
    program = capture(Call(function, **parts).eval(), args)
    planner = ChunkPlanner(program, REFERENCE, {}, candidates=False)
    found = signatures(planner.storage, planner.model.infos, planner.order, planner.live, window)
    return {s.name: m for s, m in zip(planner.order, found, strict=True)}


def test_equal_layers_have_equal_marks() -> None:
    def f(m: Any, x: Tensor) -> Tensor:
        return m.d(m.c(m.b(m.a(x + 1))))

    layers = {name: Block() for name in "abcd"}
    found = list(marks(f, torch.randn(1, 37, 16), **layers).values())
    rest, count = found[1:], (len(found) - 1) // 4
    layer = [rest[k * count : (k + 1) * count] for k in range(4)]
    assert layer[1] == layer[2]
    assert layer[0][3:] == layer[1][3:]
    # The last layer differs where its tensors are returned.
    assert layer[3][-1] != layer[2][-1]
    assert layer[3][:-2] == layer[2][:-2]
    assert len(set(found)) < len(found) / 2


def test_layers_that_share_a_tensor_from_long_ago_are_equal() -> None:
    def f(m: Any, x: Tensor) -> Tensor:
        table = torch.cos(x)
        for layer in (m.a, m.b, m.c, m.d, m.e, m.f):
            x = layer(x * table)
        return x

    layers = {name: Block() for name in "abcdef"}
    found = list(marks(f, torch.randn(1, 37, 16), window=20, **layers).values())
    rest, count = found[1:], (len(found) - 1) // 6
    layer = [rest[k * count : (k + 1) * count] for k in range(6)]
    assert count < 20
    assert layer[2] == layer[3]
    # In the first layers, and where it is read last, the table's distance counts.
    assert layer[0][0] != layer[2][0] != layer[5][0]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.exp(torch.exp(x) * 2) * 3,
        lambda m, x: torch.exp(x[:, :4]) + torch.exp(x[:, 4:]),
        lambda m, x: torch.exp(x).sum(0) + torch.exp(x.view(8, 5)).sum(1).sum(0),
        lambda m, x: torch.exp(x) @ torch.exp(x.double()).float().view(8, 5),
        lambda m, x: torch.softmax(torch.softmax(x, 0), 1),
        lambda m, x: ((h := torch.exp(x)) * 2 + torch.exp(h)) * h,
    ],
    ids=["scalars", "offsets", "shapes", "dtypes", "dims", "distances"],
)
def test_steps_that_differ_have_other_marks(function: Any) -> None:
    found = marks(function, torch.randn(5, 8))
    assert len(set(found.values())) == len(found)
