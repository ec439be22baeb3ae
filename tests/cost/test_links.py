"""Links as measured: what is fitted, kept and read by the planner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch.distributed as dist

import quire
from quire.cost.collectives import TOPOLOGIES, Link, Topology
from quire.cost.links import SIZES, _fitted, measure_mesh, mesh_file, read_mesh, save_mesh
from quire.errors import InputError
from quire.sharding import topology_of
from tests.ranks import mesh
from tests.shard_models import build


@pytest.mark.parametrize("messages", [1, 7])
def test_latency_and_bandwidth_are_found_again(messages: int) -> None:
    points = [(n, messages * 20e-6 + n / 3e9) for n in SIZES]
    link = _fitted("made up", points, messages)
    assert link.latency == pytest.approx(20e-6, rel=1e-3)
    assert link.bandwidth == pytest.approx(3e9, rel=1e-3)


def _measured() -> Topology:
    return measure_mesh(mesh(4))


def test_a_mesh_of_four_ranks(ranks: Any, tmp_path: Path) -> None:
    """All ranks get the same figures, and these predict a hop that was not among those fitted."""
    first, *others = ranks.run(_measured)
    assert all(other == first for other in others)
    assert first.width == 4 and first.exchange is not None
    for link in (first.near, first.exchange):
        assert 1e-7 < link.latency < 0.1 and 1e6 < link.bandwidth < 1e13
    assert 0 <= first.hidden <= 1
    assert min(first.flops, first.attention, first.bandwidth) > 1e6
    path = tmp_path / "mesh.json"
    save_mesh(first, path)
    assert read_mesh(path) == first


def test_the_planner_reads_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow hops and fast all-to-alls, or the other way round, and Ulysses or the ring wins."""
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    model, batch = build("llama", 64)
    assert topology_of(None, "cpu", 4) == TOPOLOGIES["cpu"]
    slow, fast = Link("slow", 1e-2, 1e6), Link("fast", 1e-7, 1e12)
    for hop, exchange, way in ((slow, fast, "ulysses"), (fast, slow, "ring")):
        given = attrs.evolve(TOPOLOGIES["cpu"], near=hop, far=hop, exchange=exchange)
        save_mesh(given, mesh_file("cpu", 4))
        assert topology_of(None, "cpu", 4) == given
        assert topology_of(None, "cpu", 2) == TOPOLOGIES["cpu"]
        found = quire.prove_shard(
            model, batch, ranks=4, links=str(mesh_file("cpu", 4)), ways=["ulysses", "ring"]
        )
        assert f"attention.{way}" in found.source


def test_what_compute_cannot_hide_is_exposed() -> None:
    whole = TOPOLOGIES["h100"]
    assert (whole.exposed(3.0, 5.0), whole.exposed(5.0, 3.0)) == (0.0, 2.0)
    half = attrs.evolve(whole, hidden=0.5)
    assert (half.exposed(3.0, 5.0), half.exposed(5.0, 3.0)) == (1.5, 2.0)


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "mesh.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="quire mesh"):
        topology_of(str(path), "cpu")


def _different() -> str:
    """Ranks with other links, which take other ways."""
    model, batch = build("llama", 37)
    ways: Any = ["ring"] if dist.get_rank() % 2 else ["ulysses"]
    with pytest.raises(InputError) as found:
        quire.shard(model, batch, mesh=mesh(2), ways=ways, verify=False)
    return str(found.value)


def test_ranks_that_plan_otherwise_are_told(ranks: Any) -> None:
    """Instead of waiting for one another."""
    for text in ranks.run(_different):
        assert "different plans" in text and "links" in text


def test_one_rank_has_no_links() -> None:
    class One:
        ndim = 1

        def size(self) -> int:
            return 1

    with pytest.raises(InputError, match="1 ranks"):
        measure_mesh(One())  # type: ignore[arg-type]
