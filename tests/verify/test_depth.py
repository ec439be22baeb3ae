"""Regions deeper than the interpreter's recursion limit."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import capture
from quire.capture.program import Program
from quire.pipeline import Planning
from quire.verify import depth, restart
from quire.verify.depth import room
from quire.verify.prove import prove


class Chain(nn.Module):
    """Small at both ends and wide between them: one region. Convolutions read other places of each
    other, so their terms are one inside the next."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 16, -1)
        for _ in range(25):
            x = torch.tanh(nn.functional.conv1d(x, torch.ones(16, 1, 3), groups=16))
        return x.sum(1)


@pytest.fixture(scope="module")
def deep() -> tuple[Program, str]:
    plan, program = Planning(capture(Chain(), (torch.ones(1, 1, 512),))).plan("min")
    assert len(plan.regions) == 1
    assert len(plan.regions[0].steps) == 51
    return program, apply_chunks(program, plan).text


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A limit that this model is past, where nothing makes its terms shallow; larger ones are past
    the one by default."""
    monkeypatch.setattr(restart, "TRIES", 0)
    before = sys.getrecursionlimit()
    limit = len(inspect.stack()) + 150
    sys.setrecursionlimit(limit)
    yield limit
    sys.setrecursionlimit(before)


def test_a_deep_region_is_proved(deep: tuple[Program, str], low: int) -> None:
    assert prove(*deep).verdict == "proved"
    assert sys.getrecursionlimit() == low


def test_one_deeper_than_there_is_room_is_unknown(
    deep: tuple[Program, str], low: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth, "FRAMES", low)
    found = prove(*deep, witness=False)
    assert found.verdict == "unknown"
    assert "RecursionError" in found.reason


def test_room_is_kept_until_the_last_leaves() -> None:
    limit = sys.getrecursionlimit()
    first, second = room(), room()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getrecursionlimit() == depth.FRAMES
    second.__exit__(None, None, None)
    assert sys.getrecursionlimit() == limit
