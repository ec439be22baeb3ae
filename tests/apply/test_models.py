"""Every small model of `models.py`, run in parts, against eager."""

from __future__ import annotations

import random

import pytest

from .models import CASES
from .run import Built, built, check, module, one_region, planners, regions, same

PARTS = (1, 3, 16)
"""None of them divides the models' sizes, most of which are prime."""

DRAWN = 8


@pytest.fixture(scope="module", params=CASES, ids=[c.name for c in CASES])
def case(request: pytest.FixtureRequest, _reference_machine: None) -> Built:
    return built(request.param)


def test_smallest_plan_is_eager_at_every_part_size(case: Built) -> None:
    """As planned, in parts that do not divide, and in parts larger than the whole."""
    plan, program = case.planning.plan("min")
    assert bool(plan.regions) or not case.splits
    assert plan.peak_bytes <= case.planning.baseline[0]
    sizes = {r.name: r.part for r in plan.regions}
    small = module(program, plan, sizes)
    assert check(small, case.args, case.want) <= plan.peak_bytes
    largest = max((r.size for r in plan.regions), default=0)
    for part in (*PARTS, largest - 1, largest, largest + 3) if plan.regions else ():
        sizes.update(dict.fromkeys(sizes, max(part, 1)))
        same(small(*case.args), case.want)


def test_any_region_is_eager_within_its_peak(case: Built) -> None:
    """Regions drawn from all that the planner weighs, each as the only one of a plan."""
    draw = random.Random(case.name)
    for program, planner in planners(case.planning):
        found = regions(planner)
        for end, candidate in draw.sample(found, min(DRAWN, len(found))):
            sizes = {*PARTS, candidate.size - 1, candidate.size}
            part = draw.choice(sorted(n for n in sizes if 0 < n <= candidate.size))
            plan = one_region(planner, end, candidate, part)
            nbytes = check(module(program, plan), case.args, case.want)
            assert nbytes <= plan.peak_bytes, plan.explain()
