"""The table of rules: one rule an op, and an error that says what to do without one."""

from __future__ import annotations

import attrs
import pytest
import torch
from rule_case import Call, case_of

from quire.capture.program import Where
from quire.errors import MissingRuleError
from quire.flow import rules as families
from quire.flow.registry import flow_of, rule, rules

aten = torch.ops.aten


def test_each_family_is_imported() -> None:
    assert set(families.__all__) >= {"pointwise", "contraction", "view", "window", "attention"}
    assert len(rules()) > 400


def test_an_op_without_a_rule_names_the_line_in_the_model() -> None:
    op = case_of(Call(aten.linalg_det.default, (torch.eye(3),))).op
    op = attrs.evolve(op, where=Where("layer.0", "Odd", "model.py", 7, "x.det()"))
    with pytest.raises(
        MissingRuleError, match=r"no flow rule for aten\.linalg_det\.default"
    ) as got:
        flow_of(op)
    assert "model.py:7" in str(got.value)


def test_a_rule_may_be_kept_by_the_name_of_a_library_op() -> None:
    op = case_of(Call(aten._grouped_mm.default, grouped())).op
    named = attrs.evolve(op, target="transformers.grouped_mm_fallback.default")
    assert {axis.size for axis in flow_of(named).axes} == {8, 16}


def grouped() -> tuple[torch.Tensor, ...]:
    rows, weights = torch.randn(4, 8).bfloat16(), torch.randn(2, 8, 16).bfloat16()
    return rows, weights, torch.tensor([1, 4], dtype=torch.int32)


def test_an_op_has_one_rule() -> None:
    with pytest.raises(ValueError, match="two rules"):
        rule(aten.add.Tensor)(flow_of)
    assert rules()[aten.add.Tensor].__name__ == "pointwise"
