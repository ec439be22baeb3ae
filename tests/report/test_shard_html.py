"""The page of a shard plan says what the plan says, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from quire.cost.collectives import TOPOLOGIES
from quire.plan.shard.choose import choose
from quire.plan.shard.keep import Region
from quire.plan.shard.memory import fit
from quire.plan.shard.needs import Needs
from quire.plan.shard.plan import ShardPlan, Site
from quire.plan.shard.timing import step_time
from quire.report.shard_html import render_shard, write_shard_html

SITE = Site(
    "sdpa", "layers.<0>", "q", "k", "v", None, 0, "", (), None, 0.0, 1, 32, 8, 128, 8192, 8192, 2
)


def _plan(budget: int = 16 << 30) -> ShardPlan:
    h100 = TOPOLOGIES["h100"]
    found = choose([SITE, attrs.evolve(SITE, module="layers.1")], 8, h100)
    regions = tuple(Region(f"layers.{i}", 8 << 30, 1 << 30, 0.1) for i in range(2))
    memory = fit(Needs(regions, 10**9, 8, 1 << 30, 1 << 30, 4 << 30, 0.01), budget, 200e9)
    assert memory.peak <= budget
    time = step_time(found.chosen, 1e15, 1.25e14, 0.1, 10**9, memory.extra_seconds, 8, h100)
    return ShardPlan(
        8,
        found.orders[0],
        (SITE, attrs.evolve(SITE, module="layers.1")),
        found.chosen,
        found.tried,
        (),
        (),
        (),
        memory=memory,
        time=time,
        links=h100.name,
    )


def test_every_candidate_and_the_budget_are_there(tmp_path: Path) -> None:
    plan = _plan()
    page = write_shard_html(plan, tmp_path / "new" / "plan.html", title="a <model>").read_text()
    assert "a &lt;model&gt;" in page and "layers.&lt;0&gt;" in page
    rows = re.findall(r'data-label="Way">([^<]*)<', page)
    assert len(rows) == len(plan.candidates[0])
    assert [r for r in rows if r.endswith("✓")] == [f"{plan.chosen[0].way} ✓"]
    assert "Budget, kept" in page and "all figures predicted" in page
    assert "and 1 like it" in page


def test_the_page_is_self_contained() -> None:
    page = render_shard(_plan())
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(http" not in page


def test_states_on_the_host_are_told() -> None:
    page = render_shard(_plan(11 << 30))
    assert "Parameters, gradients and optimiser on the host" in page
    assert "offload_policy=CPUOffloadPolicy()" in page
    assert "on the host" not in render_shard(_plan())
