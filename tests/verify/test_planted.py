"""Wrong flow rules, planted: the planner believes them, the prover does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quire.apply.chunk import apply_chunks
from quire.capture.export import export, from_exported
from quire.capture.program import Op
from quire.flow import registry
from quire.flow.relation import Flow
from quire.flow.rules.common import make_flow, mapped, others
from quire.pipeline import Planning
from quire.verify.certificate import Certificate
from quire.verify.prove import prove

aten: Any = torch.ops.aten


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(torch.tanh(torch.exp(x * 2)), -1)


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.flip(torch.tanh(torch.exp(x * 2)), [1]) * 3


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(torch.tanh(torch.exp(x * 2)), 1)


def pointwise(op: Op) -> Flow:
    """Says of any op that an element of its result reads the element at that place only."""
    source = op.operands[0]
    return make_flow(op, mapped(op, others(source.ndim), source), why="")


PLANTED = [
    (Softmax, aten.softmax.int),
    (Flip, aten.flip.default),
    (Sum, aten.cumsum.default),
]


def proof(model: nn.Module) -> Certificate:
    captured = from_exported(export(model.eval(), (torch.randn(1, 512),), None, None))
    plan, program = Planning(captured).plan("min")
    assert plan.regions
    return prove(program, apply_chunks(program, plan).text, captured=captured)


@pytest.mark.parametrize(("model", "target"), PLANTED)
def test_a_wrong_rule_is_not_believed(
    model: type[nn.Module], target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target in registry.rules()
    monkeypatch.setitem(registry._rules, target, pointwise)
    found = proof(model())
    assert found.verdict == "refuted", found.reason
