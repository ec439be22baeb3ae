"""Programs of free lengths: when they are captured, and for which lengths they are planned."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from quire.errors import BudgetError, CaptureError
from quire.plan.shard.plan import ShardPlan
from quire.runtime.programs import Free
from quire.shard_lengths import FreeLengths, Making
from quire.sharding import built, plan_shards, topology_of
from tests.shard_small import captured


def call(size: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, size, dtype=torch.int64), torch.zeros(2, size, dtype=torch.int64)


@attrs.define
class Asked:
    """What is asked of a capture and of the planner; `least` is the longest that fits."""

    ranges: list[tuple[int, int]] = attrs.field(factory=list)
    planned: list[int] = attrs.field(factory=list)
    longest: int = 1 << 20
    widest: int = 1 << 20

    def capture(self, model: Any, args: Any, kwargs: Any, free: Any) -> Any:
        dim = free[0][1]
        assert free == {0: {1: dim}, 1: {1: dim}}
        self.ranges.append((dim.min, dim.max))
        if dim.max > self.widest:
            raise CaptureError("too wide")
        return captured()[1]

    def plan(self, program: Any) -> ShardPlan:
        size = next(program.info(i.node).shape[1] for i in program.users_inputs())
        self.planned.append(size)
        if size > self.longest:
            raise BudgetError("no room", best=None, binding=())
        return plan_shards(program, 4, topology_of(None, "cpu"))

    def made(self, lengths: FreeLengths, size: int) -> Any:
        first = Free.of(call(16), {16})
        free = first.after(call(7)).only_varied()
        return lengths(captured()[0], call(size), {}, free, 0)

    def lengths(self) -> FreeLengths:
        def write(model: Any, program: Any, plan: Any, number: int) -> Any:
            return built(model, program, plan, number=number)

        return FreeLengths(Making(self.capture, self.plan, write, None), 4)


def test_one_capture_for_as_long_as_it_reaches() -> None:
    asked = Asked()
    lengths = asked.lengths()
    found = [asked.made(lengths, size) for size in (9, 13, 20)]
    # The example had 16; longer ones ask for more.
    assert asked.ranges == [(2, 16), (2, 32)]
    assert asked.planned == [10, 14, 20]
    assert [f.lengths[0].values for f in found] == [range(9, 11), range(13, 15), range(17, 21)]
    assert found[0].plan.sites[0].q_size == 10 and "lengths 9 to 10" in found[0].plan.explain()


def test_what_cannot_be_captured_widely_is_for_a_bucket() -> None:
    asked = Asked(widest=15)
    lengths = asked.lengths()
    asked.made(lengths, 9)
    asked.made(lengths, 10)
    assert asked.ranges == [(2, 16), (9, 10)]
    asked.made(lengths, 13)
    assert asked.ranges[2:] == [(13, 14)]
    with pytest.raises(CaptureError):
        asked.made(lengths, 20)
    with pytest.raises(CaptureError):
        asked.made(lengths, 19)
    assert asked.ranges[3:] == [(17, 20)]


def test_where_the_longest_has_no_room_the_length_itself_may() -> None:
    asked = Asked(longest=9)
    lengths = asked.lengths()
    found = asked.made(lengths, 9)
    assert asked.planned == [10, 9]
    assert found.lengths[0].values == range(9, 10)
    with pytest.raises(BudgetError):
        asked.made(lengths, 10)
