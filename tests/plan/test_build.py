"""Plans of whole models: regions, reuse, moments, and part sizes at other lengths."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from quire.capture.export import capture
from quire.cost.machine import REFERENCE
from quire.cost.model import with_slack
from quire.errors import BudgetError
from quire.pipeline import Planning
from quire.plan.build import PartSizer, fingerprint
from quire.plan.plan import Plan

from ..apply.models import Attention, Block, Decoder, residual_over_a_dying_tensor

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "QUIRE_UPDATE_GOLDEN" in os.environ
LENGTHS = Dim("length", min=2, max=512)


def planning(model: nn.Module, *args: Tensor, dynamic: Any = None) -> Planning:
    return Planning(capture(model.eval(), args, dynamic_shapes=dynamic))


@lru_cache
def decoder(attempt: int = 0) -> Planning:
    return planning(Decoder(eager=True), torch.ones(1, 301, dtype=torch.long))


GOLDENS = {
    "block": lambda: planning(Block(), torch.zeros(1, 301, 16)),
    "attention": lambda: planning(Attention(eager=True), torch.zeros(2, 301, 16)),
    "any_length": lambda: planning(Block(), torch.zeros(1, 301, 16), dynamic={"x": {1: LENGTHS}}),
}


def untimed(plan: Plan) -> Plan:
    """What a plan decides and the bytes it needs, without predicted times and the timeline."""
    regions = tuple(attrs.evolve(r, seconds=0.0, unsplit_seconds=0.0) for r in plan.regions)
    times = {"seconds": 0.0, "baseline_seconds": 0.0}
    return attrs.evolve(plan, regions=regions, before=(), after=(), **times)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    """QUIRE_UPDATE_GOLDEN=1 pytest tests/plan writes the files anew."""
    plan = untimed(GOLDENS[name]().plan("min")[0])
    path = GOLDEN / f"{name}.json"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(plan.to_json(indent=1) + "\n")
    kept = Plan.from_json(path.read_text())
    assert plan.explain() == kept.explain()
    assert plan == kept


def test_planned_twice_the_same() -> None:
    (first, _), (second, _) = (decoder(attempt).plan(0.4) for attempt in range(2))
    assert first.to_json() == second.to_json()


def test_regions_are_runs_of_the_order() -> None:
    plan, _ = decoder().plan("min")
    at = {name: k for k, name in enumerate(plan.order)}
    ends = 0
    for region in plan.regions:
        run = [at[s] for s in region.steps]
        assert run == list(range(run[0], run[0] + len(run)))
        assert run[0] >= ends
        assert region.seed == region.steps[-1]
        assert 1 <= region.part <= region.size
        assert {p.step for p in region.places} == set(region.steps)
        assert region.peak_bytes <= plan.peak_bytes
        ends = run[-1] + 1


def test_like_names_the_first_region_of_its_kind() -> None:
    plan, _ = decoder().plan("min")
    first: dict[str, str] = {}
    for region in plan.regions:
        assert first.setdefault(region.like, region.name) == region.like


def test_an_output_is_written_over_a_dying_input() -> None:
    model, args = residual_over_a_dying_tensor()
    plan, _ = planning(model, *args).plan("min")
    assert all(len(r.reuse) == 1 for r in plan.regions)
    (out, base), (_, second) = (r.reuse[0] for r in plan.regions)
    assert plan.regions[0].steps[-1] == out == second
    assert base in plan.order


def test_no_users_input_and_no_weight_is_written_over() -> None:
    for build in GOLDENS.values():
        found = build()
        inputs = {i.node.name for i in found.captured.inputs}
        for memory in ("min", None, 0.5):
            plan, _ = found.plan(memory)
            pairs = [*plan.overwrites, *(pair for r in plan.regions for pair in r.reuse)]
            assert not {base for _, base in pairs} & inputs


@pytest.mark.parametrize("memory", ["min", None, 0.6])
def test_moments_add_up(memory: Any) -> None:
    found = decoder()
    plan, _ = found.plan(memory)
    for rows, peak in ((plan.before, plan.baseline_bytes), (plan.after, plan.peak_bytes)):
        assert with_slack(max(m.nbytes for m in rows)) == peak
        for moment in rows:
            assert sum(h.nbytes for h in moment.holds) == moment.nbytes
            sizes = [h.nbytes for h in moment.holds if "smaller" not in h.tensor]
            assert sizes == sorted(sizes, reverse=True)
    assert sum(m.seconds for m in plan.after) == pytest.approx(plan.seconds)
    assert [m.region for m in plan.after if m.region] == [r.name for r in plan.regions]


def test_fingerprint_tells_programs_apart() -> None:
    x = torch.zeros(1, 37, 16)
    one, again = (fingerprint(capture(Block().eval(), (x,))) for _ in range(2))
    assert one == again
    assert one != fingerprint(capture(Block().eval(), (torch.zeros(1, 38, 16),)))
    assert one != fingerprint(capture(Block(causal=False).eval(), (x,)))


# Part sizes at other lengths


@pytest.fixture(scope="module")
def sized(_reference_machine: None) -> tuple[Plan, PartSizer]:
    found = planning(
        Decoder(eager=True), torch.ones(1, 301, dtype=torch.long), dynamic={"ids": {1: LENGTHS}}
    )
    plan, program = found.plan(0.3)
    return plan, PartSizer(program, plan, REFERENCE, 1)


def test_planned_for_the_longest(sized: tuple[Plan, PartSizer]) -> None:
    plan, sizer = sized
    ((_, length),) = plan.lengths
    assert length == 512
    assert sizer((512,)) == {r.name: r.part for r in plan.regions}


@pytest.mark.parametrize("length", [2, 3, 64, 101, 511])
def test_shorter_inputs_take_parts_that_fit(length: int, sized: tuple[Plan, PartSizer]) -> None:
    plan, sizer = sized
    parts = sizer((length,))
    assert set(parts) == {r.name for r in plan.regions}
    assert all(1 <= parts[r.name] <= r.part for r in plan.regions)


def test_no_part_fits_an_input_that_is_too_long() -> None:
    found = planning(Block(), torch.zeros(1, 301, 16), dynamic={"x": {1: Dim.AUTO}})
    (symbol,) = found.captured.symbols
    found.lengths[symbol.name] = 301
    plan, program = found.plan(0.5)
    sizer = PartSizer(program, plan, REFERENCE, 1)
    assert sizer((150,))
    with pytest.raises(BudgetError, match="does not fit the budget") as error:
        sizer((100_000,))
    assert error.value.best == plan
