"""Properties of spans, windows and view factors, and their meaning on symbolic sizes."""

from __future__ import annotations

import itertools
import math

import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_case import Call, Case, case_of
from rule_check import bounds, check_axis, cut
from torch import fx

from quire.capture.build import make_op
from quire.capture.program import Op, Size, TensorInfo
from quire.flow.registry import flow_of
from quire.flow.relation import Span, span, window
from quire.flow.rules.common import divide, equal
from quire.flow.rules.view import factors

aten = torch.ops.aten
S, T = sympy.symbols("s t", positive=True, integer=True)
small = st.integers(1, 4)
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(st.integers(0, 9), st.integers(0, 9), small, st.integers(-3, 3), st.integers(-3, 3))
def test_neighbouring_parts_of_a_span_touch_or_overlap_alike(
    a: int, length: int, scale: int, lo: int, hi: int
) -> None:
    one = Span(0, scale=scale, lo=lo, hi=hi)
    first, middle = one.interval(0, a)
    other, last = one.interval(a, a + length)
    assert first == lo and last == scale * (a + length) + hi
    assert middle - other == hi - lo


@given(small, st.integers(0, 3), small, small, st.integers(0, 4), small, st.randoms())
@settings(deadline=None, max_examples=60)
def test_a_window_is_what_a_convolution_reads(
    stride: int, padding: int, kernel: int, dilation: int, more: int, parts: int, rng: object
) -> None:
    reach = dilation * (kernel - 1) + 1
    x = torch.arange(reach + more, dtype=torch.float64)[None, None]
    weight = torch.arange(1, kernel + 1, dtype=torch.float64)[None, None]
    whole = F.conv1d(x, weight, None, stride, padding, dilation)
    read = window(2, stride, padding, reach, fill=0.0)
    count = whole.shape[2]
    cuts = sorted({0, count, *(count * i // parts for i in range(parts))})
    pieces = [
        F.conv1d(cut(x, read, a, b), weight, None, stride, 0, dilation)
        for a, b in itertools.pairwise(cuts)
    ]
    torch.testing.assert_close(torch.cat(pieces, 2), whole)


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_factors_of_a_view_cut_both_sides_alike(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    source, result = (grouped(numbers, data.draw(st.lists(st.booleans()))) for _ in range(2))
    case = case_of(Call(aten.view.default, (torch.randn(source), list(result))))
    flow = flow_of(case.op)
    for axis in flow.axes:
        check_axis(case, flow, axis, bounds(int(axis.size), data.draw(st.randoms())))
    found = factors(source, result)
    assert math.prod(f.size for f in found) == math.prod(source)  # a common refinement exists
    for f in found:
        assert f.size * f.source.scale * f.source.outer == source[f.source.dim]
        assert f.size * f.result.scale * f.result.outer == result[f.result.dim]


def grouped(numbers: list[int], joints: list[bool]) -> tuple[int, ...]:
    """`numbers` with some neighbours multiplied together."""
    found = [1]
    for number, apart in zip(numbers, [*joints, *[True] * len(numbers)], strict=False):
        found = [*found, number] if apart else [*found[:-1], found[-1] * number]
    return tuple(found)


@given(sizes, sizes)
def test_factors_never_outgrow_either_side(source: list[int], result: list[int]) -> None:
    if math.prod(source) != math.prod(result):
        result = [math.prod(source)]
    for f in factors(source, result):
        assert source[f.source.dim] % int(f.size * f.source.outer) == 0
        assert result[f.result.dim] % int(f.size * f.result.outer) == 0


@given(
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(-12, 12)),
    st.one_of(st.none(), st.integers(-12, 12)),
    small,
    st.randoms(),
)
@settings(deadline=None, max_examples=80)
def test_a_slice_moves_its_parts(
    size: int, start: int | None, end: int | None, step: int, rng: object
) -> None:
    call = Call(aten.slice.Tensor, (torch.randn(size, 2), 0, start, end, step))
    case = case_of(call)
    flow = flow_of(case.op)
    for axis in flow.axes:
        check_axis(case, flow, axis, bounds(int(axis.size), rng))  # type: ignore[arg-type]


def symbolic(
    target: object, shapes: list[tuple[Size, ...]], out: tuple[Size, ...], *rest: object
) -> Op:
    """An op on tensors of symbolic shapes."""
    graph = fx.Graph()

    def info(shape: tuple[Size, ...]) -> tuple[TensorInfo, ...]:
        return (TensorInfo(shape, torch.float32, tuple(1 for _ in shape), torch.device("cpu")),)

    nodes = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
    node = graph.call_function(target, (*nodes, *rest))  # type: ignore[arg-type]
    infos = {n: info(s) for n, s in zip(nodes, shapes, strict=True)}
    return make_op(node, {**infos, node: info(out)}, {})


def dims_written(op: Op) -> set[int]:
    return {a.writes[0].dim for a in flow_of(op).axes if a.writes[0] is not None}


def test_sizes_are_compared_for_all_lengths() -> None:
    assert equal(2 * (S + 1), 2 * S + 2) and not equal(S, T) and not equal(S, 5)
    assert divide(4 * S * T, 2 * S) == 2 * T
    assert divide(S, 2) is None and divide(S, T) is None


@pytest.mark.parametrize(
    ("source", "result", "expected"),
    [
        ((1, S, 12, 64), (1, S, 768), [(S, 1), (12, 2), (64, 2)]),
        ((1, S, 768), (1, S, 12, 64), [(S, 1), (12, 2), (64, 3)]),
        ((2, S, T), (2 * S, T), [(2, 0), (S, 0), (T, 1)]),
        ((S, T), (T, S), []),
        ((S, 4), (2, 2 * S), []),
    ],
)
def test_views_match_symbolic_sizes_or_not_at_all(
    source: tuple[Size, ...], result: tuple[Size, ...], expected: list[tuple[Size, int]]
) -> None:
    assert [(f.size, f.result.dim) for f in factors(source, result)] == expected


def test_unequal_symbols_are_no_axis() -> None:
    op = symbolic(aten.add.Tensor, [(S, 3), (T, 3)], (S, 3))
    assert dims_written(op) == {1}
    assert "size t where the output has s" in flow_of(op).opaque[0]
    assert dims_written(symbolic(aten.add.Tensor, [(S, 3), (1, 3)], (S, 3))) == {0, 1}


def test_a_symbolic_slice_from_the_end_is_known_by_its_length() -> None:
    last = flow_of(symbolic(aten.slice.Tensor, [(S,)], (3,), 0, -3, 1 << 62))
    assert last.axes[0].reads[0] == Span(0, scale=1, lo=S - 3, hi=S - 3)
    unknown = flow_of(symbolic(aten.slice.Tensor, [(S,)], (T,), 0, -3, 1 << 62))
    assert unknown.axes == () and "not known" in unknown.opaque[0]


def test_symbolic_contraction() -> None:
    op = symbolic(aten.linear.default, [(1, S, 64), (32, 64)], (1, S, 32))
    flow = flow_of(op)
    assert flow.flops == 2 * S * 64 * 32
    assert {a.size for a in flow.axes} == {1, S, 32, 64}


def test_arange_starts_where_the_part_does() -> None:
    flow = flow_of(case_of(Call(aten.arange.default, (7,))).op)
    assert flow.axes[0].reads == () and flow.axes[0].writes == (span(0),)
    case: Case = case_of(Call(aten.arange.default, (7,)))
    check_axis(case, flow, flow.axes[0], [0, 2, 7])
