"""Every rule against torch, in small; and the audit itself against rules that lie."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import attrs
import audit_rules
import pytest
import torch
from rule_case import Call, Case, case_of
from rule_check import WrongAxisError, check_axis, check_pair

from quire.flow.registry import flow_of, rules
from quire.flow.relation import Axis, Flow, Join, Part, Span, span, window

aten = torch.ops.aten
GROUPS = 8


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_rule_claims_a_wrong_axis_and_none_lacks_a_plain_one(group: int) -> None:
    targets = list(rules())[group::GROUPS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of samples of size 1 and 0
        report = audit_rules.audit(targets, rounds=3)
    assert report.incorrect == []
    assert report.broken == []
    assert report.missing == {}


def conv() -> Case:
    x, w, b = torch.randn(2, 4, 9).double(), torch.randn(6, 4, 3).double(), torch.randn(6).double()
    return case_of(Call(aten.conv1d.default, (x, w, b, [2], [1])))


def linear() -> Case:
    x, w, b = torch.randn(5, 4).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    return case_of(Call(aten.linear.default, (x, w, b)))


def mean() -> Case:
    return case_of(Call(aten.mean.dim, (torch.randn(5, 4).double(), [0])))


def softmax() -> Case:
    return case_of(Call(aten.softmax.int, (torch.randn(3, 7).double(), -1)))


def view() -> Case:
    return case_of(Call(aten.view.default, (torch.randn(4, 6).double(), [24])))


def stretch() -> Case:
    x, y = torch.randn(2, 9).double(), torch.randn(2, 4).double()
    return case_of(Call(aten.slice_scatter.default, (x, y, 1, 3, 7)))


def causal() -> Case:
    q = torch.randn(1, 2, 5, 4).double()
    call = Call(aten.scaled_dot_product_attention.default, (q, q, q, None, 0.0, True))
    return case_of(call)


def axis_of(flow: Flow, wanted: Callable[[Axis], bool]) -> Axis:
    (found,) = [axis for axis in flow.axes if wanted(axis)]
    return found


def folds(axis: Axis) -> bool:
    return axis.join.folds


def within(axis: Axis) -> bool:
    return axis.join is Join.WITHIN


def writes(dim: int) -> Callable[[Axis], bool]:
    return lambda axis: axis.writes[0] is not None and axis.writes[0].dim == dim


def reading(new: Span | None) -> Callable[[Axis], Axis]:
    return lambda axis: attrs.evolve(axis, reads=(new, *axis.reads[1:]))


def changed(**fields: Any) -> Callable[[Axis], Axis]:
    return lambda axis: attrs.evolve(axis, **fields)


LIES = [
    (conv, writes(2), reading(window(2, 2, 1, 2, fill=0.0)), "halo dropped"),
    (conv, writes(2), reading(window(2, 2, 0, 3, fill=0.0)), "chunk shifted"),
    (conv, writes(2), reading(window(2, 2, 1, 3)), "no fill"),
    (conv, writes(2), reading(window(2, 2, 1, 3, fill=1.0)), "wrong fill"),
    (conv, writes(2), changed(edit=None), "padded twice"),
    (conv, writes(1), lambda a: attrs.evolve(a, reads=(*a.reads[:2], None)), "bias whole"),
    (conv, folds, changed(edit=None), "bias added in each part"),
    (linear, folds, changed(init=None), "bias lost"),
    (linear, folds, changed(join=Join.MAX), "summed by max"),
    (linear, writes(0), changed(writes=(span(1),)), "written to another dim"),
    (mean, folds, changed(join=Join.SUM), "means summed"),
    (softmax, folds, changed(join=Join.CONCAT), "not rescaled"),
    (view, lambda a: a.size == 6, lambda a: attrs.evolve(a, writes=(span(0),)), "outer dropped"),
    (view, lambda a: a.size == 4, changed(edit=None), "whole size"),
    (causal, writes(2), changed(edit=None, target=None), "causal from row 0"),
    (stretch, within, changed(writes=(span(1),)), "stretch at the start"),
    (stretch, within, changed(init=1), "the rest of another"),
]


@pytest.mark.parametrize(("make", "which", "lie", "name"), LIES, ids=[row[3] for row in LIES])
def test_the_audit_finds_a_lie_and_passes_the_truth(
    make: Callable[[], Case],
    which: Callable[[Axis], bool],
    lie: Callable[[Axis], Axis],
    name: str,
) -> None:
    case = make()
    flow = flow_of(case.op)
    axis = axis_of(flow, which)
    cuts = [0, 1, 3, int(axis.size)]
    check_axis(case, flow, axis, cuts)
    with pytest.raises(WrongAxisError):
        check_axis(case, flow, lie(axis), cuts)


def test_edits_that_forget_the_other_axis_are_found() -> None:
    x, w = torch.randn(1, 2, 6, 7).double(), torch.randn(3, 2, 3, 3).double()
    case = case_of(Call(aten.conv2d.default, (x, w, None, [1, 1], [1, 1])))
    rows, columns = (axis_of(flow_of(case.op), writes(d)) for d in (2, 3))
    rng = random.Random(0)
    for _ in range(8):
        check_pair(case, rows, columns, rng)

    def forgets(part: Part) -> dict[str, Any]:
        return {"padding": [1, 0]}

    with pytest.raises(WrongAxisError):
        for _ in range(8):
            check_pair(case, rows, attrs.evolve(columns, edit=forgets), rng)


def test_pointwise_says_what_may_be_written_in_place() -> None:
    x, row = torch.randn(3, 4), torch.randn(4)
    assert flow_of(case_of(Call(aten.add.Tensor, (x, row))).op).pointwise
    assert not flow_of(case_of(Call(aten.softmax.int, (x, -1))).op).pointwise
    assert not flow_of(case_of(Call(aten.transpose.int, (x, 0, 1))).op).pointwise


@pytest.mark.parametrize(
    ("target", "args", "dim", "reason"),
    [
        (aten.cumsum.default, (torch.randn(3, 4), 1), 1, "before"),
        (aten.roll.default, (torch.randn(3, 4), [1], [0]), 0, "rolled"),
        (aten.layer_norm.default, (torch.randn(3, 4), [4]), 1, "normalised"),
        (
            aten.avg_pool1d.default,
            (torch.randn(1, 3, 8), [3], [1], [1], False, False),
            2,
            "padding",
        ),
        (aten.rand_like.default, (torch.randn(3, 4),), 0, "random"),
        (aten.view.default, (torch.randn(2, 3), [3, 2]), 0, "factor"),
        (aten.split.sizes, (torch.randn(2, 5), [2, 3], 1), 1, "differ"),
    ],
)
def test_a_dim_without_axis_has_a_reason(
    target: Any, args: tuple[Any, ...], dim: int, reason: str
) -> None:
    assert reason in flow_of(case_of(Call(target, args)).op).opaque[dim]
