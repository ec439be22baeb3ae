"""torch.compile(model, backend="quire")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quire
import quire.backend
from quire.cost.machine import REFERENCE
from quire.measure import allocated
from quire.plan.plan import Plan

from .apply.models import Decoder
from .apply.run import same


class Mlp(nn.Module):
    """Wide within: its parts take a small share of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 512), nn.Linear(512, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans made during the test."""
    made: list[Plan] = []

    def spy(*args: Any, **kwargs: Any) -> nn.Module:
        small = quire.chunk(*args, **kwargs)
        made.append(small.plan)
        return small

    monkeypatch.setattr(quire.backend, "chunk", spy)
    return made


def test_the_name_is_known_to_torch() -> None:
    assert "quire" in torch._dynamo.list_backends()


@torch.inference_mode()
def test_compiled_model_keeps_the_budget(plans: list[Plan]) -> None:
    model, x = Mlp().eval(), torch.randn(700, 16)
    run = torch.compile(model, backend="quire", options={"memory": 0.25}, fullgraph=True)
    torch.testing.assert_close(run(x), model(x))
    (plan,) = plans
    assert plan.budget is not None and plan.regions
    assert allocated(lambda: run(x))[0] <= plan.budget < allocated(lambda: model(x))[0]


@torch.inference_mode()
def test_weights_are_those_of_the_model() -> None:
    model, x = Mlp().eval(), torch.randn(700, 16)
    run = torch.compile(model, backend="quire")
    before = run(x).clone()
    model.down.bias.add_(1)
    torch.testing.assert_close(run(x), before + 1)


@torch.inference_mode()
def test_attention_with_integer_inputs(plans: list[Plan]) -> None:
    model, ids = Decoder(eager=True).eval(), torch.randint(50, (2, 64))
    run = torch.compile(model, backend="quire", options={"memory": "min"})
    same(run(ids), model(ids))
    assert plans[0].regions


@torch.inference_mode()
def test_one_module_for_the_lengths_that_torch_finds_to_vary(plans: list[Plan]) -> None:
    model = Mlp().eval()
    run = torch.compile(model, backend="quire", options={"memory": "min"})
    for length in (500, 700, 300, 64):
        x = torch.randn(length, 16)
        torch.testing.assert_close(run(x), model(x))
    assert len(plans) == 2  # for the first length alone, then for any
    assert [length for _, length in plans[1].lengths] == [700]


@torch.inference_mode()
def test_a_range_that_is_given_is_planned_for(plans: list[Plan]) -> None:
    model, x = Mlp().eval(), torch.randn(600, 16)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=4096)
    run = torch.compile(model, backend="quire", options={"memory": "min"})
    torch.testing.assert_close(run(x), model(x))
    assert [length for _, length in plans[0].lengths] == [4096]


def test_gradients_are_refused_by_name() -> None:
    run = torch.compile(Mlp(), backend="quire")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"inference_mode\(\)"):
        run(torch.randn(5, 16))
    with torch.no_grad():
        assert run(torch.randn(5, 16)).shape == (5, 16)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"options": {"memory": "min", "budget": 3}}, "takes no budget"),
        ({"mode": "max"}, "no mode"),
    ],
)
@torch.inference_mode()
def test_what_the_backend_does_not_take_is_refused(given: dict[str, Any], said: str) -> None:
    run = torch.compile(Mlp(), backend="quire", **given)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=said):
        run(torch.randn(5, 16))


@torch.inference_mode()
def test_a_budget_that_cannot_be_kept_is_said_so() -> None:
    run = torch.compile(Mlp(), backend="quire", options={"memory": 16})
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="no plan fits 16 bytes"):
        run(torch.randn(500, 16))
