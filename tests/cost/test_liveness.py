"""Liveness against a run that keeps count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.capture.export import capture
from quire.cost.liveness import Liveness
from quire.flow.propagate import Storage


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[set[int]], list[int], set[int]]:
    """For each step the earlier steps it reads, and its bytes; and the steps returned."""
    count = draw(st.integers(1, 9))
    reads = [draw(st.sets(st.integers(0, k - 1))) if k else set() for k in range(count)]
    nbytes = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    return reads, nbytes, draw(st.sets(st.integers(0, count - 1)))


def simulated(reads: list[set[int]], nbytes: list[int], returned: set[int]) -> list[int]:
    """Bytes live before each step and after the last, each tensor freed after its last read."""
    live: set[int] = set()
    totals = []
    for k in range(len(reads)):
        totals.append(sum(nbytes[i] for i in live))
        live.add(k)
        later = set().union(*reads[k + 1 :], returned)
        live &= later
    totals.append(sum(nbytes[i] for i in live))
    return totals


@settings(deadline=None, max_examples=200)
@given(graphs())
def test_liveness_is_that_of_a_run(graph: Any) -> None:
    reads, nbytes, returned = graph
    count = len(reads)
    readers = {i: [k for k in range(count) if i in reads[k]] for i in range(count)}
    storage: Any = SimpleNamespace(readers=readers, returned=frozenset(returned))
    sizes: Any = dict(enumerate(nbytes))
    order: Any = list(range(count))
    live = Liveness(storage, sizes, order)
    assert live.before == simulated(reads, nbytes, returned)
    for i in range(count):
        last: Any = live.last
        if i in returned:
            assert last[i] == count
        else:
            assert last[i] == max(readers[i], default=i)


class Views(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = torch.exp(x)
        b = a.transpose(0, 1)
        c = torch.sin(x)
        d = b @ c
        torch.cos(d)  # read by nobody
        return d[:2], x.view(-1), c.sum()


def test_a_tensor_lives_as_long_as_its_views() -> None:
    storage = Storage(capture(Views(), (torch.randn(5, 5),)))
    nbytes = {s: 100 + k for k, s in enumerate(storage.steps)}
    live = Liveness(storage, nbytes, storage.steps)
    at = {s.name: live.last[s] for s in storage.steps}
    # The view of a input that is returned costs nothing; d lives on in a slice of it.
    assert at == {"exp": 2, "sin": 3, "matmul": 4, "sum_1": 4}
    assert live.before == [0, 100, 201, 101 + 102, 102 + 103]


def test_another_order_lives_otherwise() -> None:
    storage = Storage(capture(Views(), (torch.randn(5, 5),)))
    exp, sin, matmul, total = storage.steps
    nbytes = dict.fromkeys(storage.steps, 10)
    live = Liveness(storage, nbytes, [sin, total, exp, matmul])
    assert live.last == {sin: 3, total: 4, exp: 3, matmul: 4}
    assert live.before == [0, 10, 20, 30, 20]
