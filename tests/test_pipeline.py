"""From a model and a budget to a module: the promises that `quire.chunk` makes."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import quire
from quire.capture.export import from_exported
from quire.cost.machine import REFERENCE
from quire.pipeline import Planning

from .apply.models import Attention, Block, Decoder
from .apply.run import allocated, same

LENGTH = 301


@pytest.fixture(autouse=True, scope="module")
def _reference_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quire.pipeline, "machine", lambda *_: REFERENCE)
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Decoder(layers=1, eager=True).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(50, (1, LENGTH))


@pytest.fixture(scope="module")
def exported(model: nn.Module, ids: torch.Tensor) -> Any:
    with torch.no_grad():
        return torch.export.export(model, (ids,))


@pytest.fixture(scope="module")
def smallest(exported: Any) -> Any:
    return quire.chunk(exported, memory="min")


@pytest.fixture(scope="module")
def fastest(exported: Any) -> Any:
    return quire.chunk(exported)


@pytest.fixture(scope="module")
def curve(exported: Any) -> list[Any]:
    return quire.tradeoff(exported, points=6)


def eager(model: nn.Module, *args: Any) -> Any:
    with torch.no_grad():
        return model(*args)


def check(small: Any, model: nn.Module, ids: torch.Tensor, budget: int | None) -> None:
    """Outputs equal, and measured peak ≤ plan's peak ≤ budget."""
    small(ids)
    nbytes, got = allocated(lambda: small(ids))
    same(got, eager(model, ids))
    assert nbytes <= small.plan.peak_bytes
    assert budget is None or small.plan.peak_bytes <= budget
    assert small.plan.budget == budget


@pytest.mark.parametrize("share", [0.035, 0.05, 0.3])
def test_the_budget_is_kept(
    share: float, model: nn.Module, ids: torch.Tensor, exported: Any
) -> None:
    small = quire.chunk(exported, memory=share)
    assert bool(small.plan.regions) == (share < 0.1)
    check(small, model, ids, int(share * small.plan.baseline_bytes))


def test_spellings_of_one_budget(exported: Any) -> None:
    planning = Planning(from_exported(exported))
    plans = [planning.plan(m)[0] for m in (256 << 10, "256KiB", float(256 << 10))]
    assert len(set(plans)) == 1
    assert plans[0].budget == 256 << 10


def test_a_module_and_its_export_give_one_plan(
    model: nn.Module, ids: torch.Tensor, smallest: Any
) -> None:
    assert quire.chunk(model, (ids,), memory="min").plan == smallest.plan


def test_planned_twice_the_same() -> None:
    model, x = Block().eval(), torch.randn(1, 37, 16)
    one, two = (quire.chunk(model, (x,), memory="min") for _ in range(2))
    assert one.plan.to_json() == two.plan.to_json()
    assert one.source == two.source


def test_no_budget_is_the_fastest(
    model: nn.Module, ids: torch.Tensor, fastest: Any, smallest: Any
) -> None:
    check(fastest, model, ids, None)
    assert fastest.plan.seconds <= smallest.plan.seconds
    assert fastest.plan.predicted_slowdown <= 1
    assert fastest.plan.peak_bytes <= fastest.plan.baseline_bytes


def test_a_budget_above_the_baseline(
    model: nn.Module, ids: torch.Tensor, exported: Any, fastest: Any
) -> None:
    roomy = quire.chunk(exported, memory="1GiB")
    check(roomy, model, ids, 1 << 30)
    assert roomy.plan.seconds <= fastest.plan.seconds


def test_a_model_with_nothing_to_split() -> None:
    model, x = nn.Linear(4, 4), torch.randn(3, 4)
    small = quire.chunk(model, (x,), memory="1GiB")
    assert not small.plan.regions
    assert "region" not in small.source
    same(small(x), eager(model, x))


# What cannot be done


def test_a_budget_that_nothing_fits(
    model: nn.Module, ids: torch.Tensor, exported: Any, smallest: Any
) -> None:
    least = smallest.plan
    with pytest.raises(quire.BudgetError) as caught:
        quire.chunk(exported, memory=least.peak_bytes - 1)
    error: Any = caught.value
    assert error.best.peak_bytes == least.peak_bytes
    assert error.best.regions == least.regions
    assert error.binding
    assert f"{least.peak_bytes} bytes" in str(error)
    assert error.fix
    # The best there is can be had.
    check(quire.chunk(exported, memory=least.peak_bytes), model, ids, least.peak_bytes)


def test_what_binds_is_named_by_the_models_lines() -> None:
    model, x = Attention(eager=True).eval(), torch.randn(1, LENGTH, 16)
    with pytest.raises(quire.BudgetError) as caught:
        quire.chunk(model, (x,), memory=1000)
    error: Any = caught.value
    assert "[Attention]" in error.where or "[Linear]" in error.where
    assert all(re.search(r"\([\d.]+ [KM]iB\)", b) for b in error.binding)
    assert any(" at " in b and ".py:" in b for b in error.binding)


def test_a_model_that_cannot_be_captured() -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(quire.CaptureError, match=r"if x\.sum"):
        quire.chunk(Branches(), (torch.randn(3),), memory="min")


@pytest.mark.parametrize("memory", ["lots", -1, 0, True, 1.5])
def test_no_budget_at_all(memory: Any, exported: Any) -> None:
    with pytest.raises(quire.QuireError, match="is no budget"):
        quire.chunk(exported, memory=memory)


# The curve


def test_the_tradeoff_is_monotone(curve: list[Any]) -> None:
    assert len(curve) > 2
    peaks, seconds = [p.peak_bytes for p in curve], [p.seconds for p in curve]
    assert peaks == sorted(set(peaks), reverse=True)
    assert seconds == sorted(seconds)


def test_the_tradeoff_ends_at_the_fastest_and_the_least(
    curve: list[Any], fastest: Any, smallest: Any
) -> None:
    assert curve[0].seconds == fastest.plan.seconds
    assert curve[-1].peak_bytes == smallest.plan.peak_bytes


# Progress, and the parts of the result


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    quire.chunk(
        Block().eval(),
        (torch.randn(1, 37, 16),),
        memory="min",
        progress=lambda *step: told.append(step),
    )
    assert told[0] == ("capturing", 0, 0)
    planned = [(done, total) for what, done, total in told if what == "planning"]
    assert planned and all(1 <= done <= total for done, total in planned)


class Named(nn.Module):
    """Inputs that go by the names emitted programs use for their own things."""

    def forward(
        self, w: Any, parts: Any, kernels: Any, region_0: Any, device: Any, attention: Any
    ) -> Any:
        return (torch.tanh(w[:, :, None] * parts) * kernels + region_0).sum(-1) * device - attention


def test_inputs_of_any_name() -> None:
    torch.manual_seed(0)
    wide, narrow = torch.randn(4, 64, 256), torch.randn(4, 64)
    args = narrow, wide, wide + 1, wide + 2, narrow + 1, narrow + 2
    small = quire.chunk(Named(), args, memory="min")
    assert small.plan.regions
    torch.testing.assert_close(small(*args), Named()(*args))


def test_the_source_is_read_by_people(smallest: Any) -> None:
    small = smallest
    assert "for a in range(0, size, step):" in small.source
    for name in ("# layers.0", "# head", "r0:"):
        assert name in small.source
    for line in small.plan.explain().splitlines():
        assert line in small.source
    compile(small.source, "source", "exec")


def test_a_traceback_shows_the_source() -> None:
    small = quire.chunk(Block().eval(), (torch.randn(1, 37, 16),), memory="min")
    name = small._forward.__code__.co_filename
    assert linecache.getlines(name) == small.source.splitlines(keepends=True)


def test_variants_share_one_baseline(exported: Any) -> None:
    """Eager attention may be fused; the baseline is the model's own all the same."""
    planning = Planning(from_exported(exported))
    (_, fused), *_ = planning.planners()
    assert fused.baseline_bytes < planning.baseline[0]
    plan, _ = planning.plan(0.9)
    assert plan.baseline_bytes == planning.baseline[0]
    assert plan.rewrites
