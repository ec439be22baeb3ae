"""How a split spreads from a region's last step to the steps before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import quire.flow.rules  # noqa: F401  (fills the table of rules)
from quire.capture.export import capture
from quire.flow.propagate import Cut, Spread, Storage, cut_for, hull, reads_of, writes_of
from quire.flow.relation import Axis, Flow, Join, Span, span, window


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def storage_of(function: Callable[..., Any], *args: Tensor, dynamic: Any = None) -> Storage:
    shapes = None if dynamic is None else {"args": tuple(dynamic)}
    return Storage(capture(Call(function), args, dynamic_shapes=shapes))


def names(nodes: Any) -> list[str]:
    return [n.name for n in nodes]


def step(storage: Storage, name: str) -> fx.Node:
    return next(s for s in storage.steps if s.name == name)


def grown(storage: Storage, axis: int, count: int, seed: str = "") -> tuple[Spread, int]:
    """A spread over the last steps up to `seed` (default: the last step), and how many of
    `count` it took in."""
    end = len(storage.steps) if not seed else names(storage.steps).index(seed) + 1
    spread = Spread(storage, storage.steps[end - 1], axis)
    for k in range(count):
        if not spread.grow(storage.steps[end - 1 - k]):
            return spread, k
    return spread, count


def axis_of(storage: Storage, name: str, dim: int) -> int:
    """The axis that maps dim `dim` of the step's output."""
    for index, axis in enumerate(storage.flows[step(storage, name)].axes):
        if axis.writes[0] == span(dim):
            return index
    raise AssertionError(f"{name} cannot be split along dim {dim}")


# Storage


def test_steps_are_the_ops_that_make_tensors() -> None:
    def f(x: Tensor) -> Tensor:
        y = torch.exp(x.view(4, 2, 3)).transpose(0, 1)
        first, second = y.split(1, 0)
        return (first + second).squeeze(0)

    storage = storage_of(f, torch.randn(4, 6))
    assert names(storage.steps) == ["exp", "add"]
    exp, add = storage.steps
    (source,) = (i.node for i in storage.program.inputs)
    by_name = {n.name: base for n, base in storage.base.items()}
    assert by_name["view"] is source
    assert by_name["transpose"] is by_name["split"] is by_name["getitem_1"] is exp
    assert by_name["squeeze"] is add
    assert storage.readers == {source: [exp], exp: [add]}
    assert storage.returned == {add}


def test_an_op_of_two_outputs_is_one_step() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        values, at = x.topk(2, -1)
        return values + 1, at

    storage = storage_of(f, torch.randn(4, 6))
    assert names(storage.steps) == ["topk", "add"]
    topk, add = storage.steps
    items = [n for n in storage.base if n.name.startswith("getitem")]
    assert [storage.written(n) for n in items] == [(topk, 0), (topk, 1)]
    assert all(storage.base[n] is topk for n in items)
    assert storage.returned == {topk, add}


def test_ops_that_may_copy_are_steps() -> None:
    storage = storage_of(lambda x: x.transpose(0, 1).contiguous().view(-1) * 2, torch.randn(4, 6))
    assert len(storage.steps) == 2


def test_lengths_make_all_sizes_numbers() -> None:
    length = torch.export.Dim("length", min=2, max=64)

    def f(x: Tensor) -> Tensor:
        return torch.exp(x.view(-1, 2, 3)).sum(0)

    symbolic = storage_of(f, torch.randn(8, 6), dynamic=[{0: length}])
    (symbol,) = symbolic.program.symbols
    fixed = Storage(symbolic.program, {symbol.name: 10})
    sizes = [axis.size for flow in fixed.flows.values() for axis in flow.axes]
    assert all(isinstance(s, int) for s in sizes)
    assert 10 in sizes
    assert any(isinstance(a.size, sympy.Expr) for s in symbolic.flows.values() for a in s.axes)


# One op


def flow(reads: tuple[Span | None, ...], write: Span, size: int = 12, **rest: Any) -> Flow:
    return Flow((Axis(size, reads, (write,), **rest),))


PLAIN = flow((span(0), span(0)), span(0))
TWICE = flow((span(0),), span(0, scale=2))
BLOCKS = flow((span(1),), span(0, outer=3))
SHIFTED = flow((Span(0, lo=-1, hi=-1),), span(0))


@pytest.mark.parametrize(
    ("given", "need", "want"),
    [
        (PLAIN, span(0), Cut(0)),
        (PLAIN, Span(0, scale=3, lo=-1, hi=2), Cut(0, 3, -1, 2)),
        (PLAIN, span(1), None),
        (PLAIN, span(0, outer=4), Cut(0, outer=4)),
        (TWICE, span(0, scale=4), Cut(0, 2)),
        (TWICE, span(0), None),
        (TWICE, Span(0, scale=2, lo=-2, hi=4), Cut(0, 1, -1, 2)),
        (TWICE, Span(0, scale=2, lo=-1), None),
        (TWICE, span(0, scale=2, outer=2), None),
        (BLOCKS, span(0, outer=3), Cut(0)),
        (BLOCKS, span(0), None),
        (BLOCKS, span(0, outer=6), None),
        (SHIFTED, span(0, outer=2), None),
        (flow((span(0),), span(0), join=Join.SUM), span(0), None),
    ],
)
def test_cut_for(given: Flow, need: Span, want: Cut | None) -> None:
    assert cut_for(given, 0, need) == want


def test_reads_and_writes_of_a_cut() -> None:
    conv = Axis(12, (window(2, 2, 1, 5, fill=0.0), None), (span(2),))
    cut = Cut(0, scale=3, lo=-1, hi=2)
    read, whole = reads_of(conv, cut)
    # Unit i reads [2i − 1, 2i + 4): units [3a − 1, 3b + 2) read [6a − 3, 6b + 6).
    assert read == Span(2, scale=6, lo=-3, hi=6, fill=0.0)
    assert whole is None
    assert list(writes_of(conv, cut)) == [Span(2, scale=3, lo=-1, hi=2)]


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        (span(0), span(0), span(0)),
        (Span(0, lo=-1), Span(0, hi=2), Span(0, lo=-1, hi=2)),
        (Span(0, lo=3, hi=4), Span(0, lo=1, hi=2), Span(0, lo=1, hi=4)),
        (Span(0, lo=-1, fill=0.0), Span(0, hi=1, fill=0.0), Span(0, lo=-1, hi=1)),
        (span(0), span(1), None),
        (span(0), span(0, scale=2), None),
        (span(0), span(0, outer=2), None),
    ],
)
def test_hull(one: Span, other: Span, want: Span | None) -> None:
    assert hull(one, other) == hull(other, one) == want


# Regions


def test_a_chain_is_split_along_its_rows() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return torch.relu(torch.exp(x) @ w)

    storage = storage_of(f, torch.randn(5, 4), torch.randn(4, 3))
    spread, taken = grown(storage, axis_of(storage, "relu", 0), 3)
    assert taken == 3
    assert names(spread.steps) == ["relu", "matmul", "exp"]
    assert set(spread.cuts.values()) == {Cut(axis_of(storage, "exp", 0))}
    x, w = (i.node for i in storage.program.inputs)
    assert {node: [r.need for _, r in asked] for node, asked in spread.pending.items()} == {
        x: [span(0)],
        w: [None],
    }


def test_needs_go_through_views_both_ways() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.relu(torch.exp(x).view(-1, 4)).view(3, 7, 4).transpose(0, 1).sin()

    storage = storage_of(f, torch.randn(3, 7, 4))
    spread, taken = grown(storage, axis_of(storage, "sin", 0), 3)
    assert taken == 3
    # Rows of the middle dim, in each of the three blocks of the merged one.
    cuts = {s.name: spread.cuts[s] for s in spread.steps}
    assert cuts["relu"].outer == 3
    assert cuts["exp"].outer == 1
    (asked,) = spread.pending.values()
    assert [r.need for _, r in asked] == [span(1)]


def test_a_split_that_a_view_merges_away_stops() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.exp(x).view(21, 4).sin()

    storage = storage_of(f, torch.randn(3, 7, 4))
    # Unit i of 21 is at (i // 7, i % 7): no interval of one dim.
    _, taken = grown(storage, axis_of(storage, "sin", 0), 2)
    assert taken == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.exp(x) @ torch.exp(x).transpose(0, 1),
        lambda x: (h := torch.exp(x)) @ h.transpose(0, 1),
        lambda x: (h := torch.exp(x)) + h.transpose(0, 1),
        lambda x: (h := torch.exp(x)) + h.flip(0),
    ],
    ids=["two tensors", "rows and whole", "rows and columns", "forward and backward"],
)
def test_reads_that_conflict_stop(function: Any) -> None:
    storage = storage_of(function, torch.randn(5, 5))
    last = storage.steps[-1].name
    index = len(storage.steps) - names(storage.steps).index("exp") - 1
    _, taken = grown(storage, axis_of(storage, last, 0), len(storage.steps))
    # All but the first exp, which is read in two ways; two tensors of their own have no conflict
    # but are asked for whole, which no split can give.
    assert taken <= index


def test_halos_are_joined() -> None:
    def f(x: Tensor) -> Tensor:
        h = torch.exp(x)
        return h[2:] + h[1:-1] * h[:-2]

    storage = storage_of(f, torch.randn(9, 4))
    spread, taken = grown(storage, axis_of(storage, "add", 0), 3)
    assert taken == 3
    exp = spread.steps[-1]
    # Row i of the sum reads rows i, i + 1 and i + 2.
    assert spread.cuts[exp] == Cut(axis_of(storage, "exp", 0), lo=0, hi=2)


def test_halos_of_convolutions_add_up() -> None:
    def f(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        h = F.conv1d(x, v, padding=1)
        return F.conv1d(torch.relu(h), w, stride=2, padding=2)

    storage = storage_of(f, torch.randn(1, 2, 21), torch.randn(4, 2, 3), torch.randn(3, 4, 5))
    spread, taken = grown(storage, axis_of(storage, "conv1d_1", 2), 3)
    assert taken == 3
    x = next(i.node for i in storage.program.inputs)
    needs = [r.need for node, r in spread.pending[x]]
    # Unit i reads [2i − 2, 2i + 3) of h, each of which reads one more on either side.
    assert needs == [Span(2, scale=2, lo=-3, hi=2, fill=0.0)]


def test_outputs_that_nothing_in_the_region_reads_join_in() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        a = torch.exp(x)
        b = torch.sin(x.transpose(0, 1))
        c = torch.cos(x)
        return a, b, c

    storage = storage_of(f, torch.randn(7, 7))
    spread, taken = grown(storage, axis_of(storage, "cos", 0), 3)
    assert taken == 3
    assert names(spread.extra) == ["sin", "exp"]
    # Of two axes of the loop's length the one that reads the same part of x is taken.
    (asked,) = spread.pending.values()
    assert {r.need for node, r in asked if node.op == "placeholder"} == {span(0)}
    assert spread.cuts[step(storage, "exp")] == Cut(axis_of(storage, "exp", 0))


def test_an_output_of_another_length_does_not_join_in() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(y), torch.cos(x)

    storage = storage_of(f, torch.randn(7, 3), torch.randn(5, 4))
    _, taken = grown(storage, axis_of(storage, "cos", 0), 2)
    assert taken == 1


def test_two_outputs_of_one_op_are_not_asked_for_at_once() -> None:
    def f(x: Tensor) -> Tensor:
        values, at = x.topk(3, -1)
        return values * at

    storage = storage_of(f, torch.randn(7, 5))
    _, taken = grown(storage, axis_of(storage, "mul", 0), 2)
    assert taken == 1


def test_a_snapshot_stays_as_it_is() -> None:
    storage = storage_of(lambda x: torch.sin(torch.exp(torch.cos(x))), torch.randn(7, 5))
    spread, _ = grown(storage, 0, 2)
    kept = spread.snapshot()
    before = dict(kept.cuts), {k: list(v) for k, v in kept.pending.items()}, list(kept.steps)
    assert spread.grow(storage.steps[0])
    assert (kept.cuts, kept.pending, kept.steps) == before
    assert len(spread.steps) == 3


def test_symbolic_sizes_spread_alike() -> None:
    length = torch.export.Dim("length", min=2, max=64)

    def f(x: Tensor) -> Tensor:
        return torch.relu(torch.exp(x).view(-1, 4)).view(3, -1, 4).sin()

    storage = storage_of(f, torch.randn(3, 7, 4), dynamic=[{1: length}])
    spread, taken = grown(storage, axis_of(storage, "sin", 1), 3)
    assert taken == 3
    (asked,) = spread.pending.values()
    assert [r.need for _, r in asked] == [span(1)]
