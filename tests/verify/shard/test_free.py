"""Sharded programs proved at every length of a range at once."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from quire.shard_proof import hooks
from quire.verify.certificate import verify
from quire.verify.shard.free import least
from quire.verify.shard.order import Order
from quire.verify.shard.prove import prove_task
from quire.verify.shard.task import Source, Task
from tests.verify.shard.cases import ranged

WAYS = ("ulysses", "ring", "gathered", "hybrid")
LOW = 57  # from here on each of 4 ranks has rows of both of its blocks


@pytest.mark.parametrize("way", WAYS)
def test_a_decoder_is_proved_at_all_lengths(way: str) -> None:
    """Loss, gradients, a mean, a row at a fixed place and outputs, whether padding is or is not."""
    found = prove_task(ranged(4, way, LOW, 1 << 16), hooks())
    assert found.verdict == "proved", found.reason
    assert [(low, high) for _, low, high in found.sizes] == [(LOW, 1 << 16)]
    assert f"in {LOW} … 65536" in found.about
    tables = [c for c in found.claims if c.kind == "mesh"]
    assert tables and {c.rule for c in tables} == {"read for any length"}


@pytest.mark.parametrize(("ranks", "way"), [(3, "ring"), (6, "hybrid"), (16, "gathered")])
def test_on_other_ranks(ranks: int, way: str) -> None:
    low = least(Order(1, ranks, ranks))
    found = prove_task(ranged(ranks, way, low, 4096), hooks())
    assert found.verdict == "proved", found.reason


def test_rows_in_parts() -> None:
    found = prove_task(ranged(4, "ring", LOW, 512, parts=10), hooks())
    assert found.verdict == "proved", found.reason


def test_the_file_is_checked_again_by_both_solvers(tmp_path: Path) -> None:
    found = prove_task(ranged(4, "ring", LOW, 512), hooks())
    again = verify(found.save(tmp_path / "small.cert"), solver="both")
    assert again.verdict == "proved", again.reason


def test_it_is_of_a_range_that_begins_where_all_ranks_have_rows() -> None:
    found = prove_task(ranged(4, "ring", LOW - 1, 512), hooks(), refute=False)
    assert found.verdict == "unknown"
    assert f"from {LOW} on" in found.reason


def _told(honest: Task, old: str, new: str) -> Task:
    sources = [Source(s.module, s.call, s.text.replace(old, new)) for s in honest.sources]
    assert sources != list(honest.sources)
    return attrs.evolve(honest, sources=tuple(sources))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("local / length", "local / (length + 1)"),
        ("q_size=length", "q_size=length - 1"),
        ("ranks.local_rows(length, ", "ranks.local_rows(length + 4, "),
        (", -100.0)", ", 0.0)"),
    ],
)
def test_what_is_wrong_at_some_lengths_is_not_proved(old: str, new: str) -> None:
    told = _told(ranged(4, "gathered", LOW, 512), old, new)
    assert prove_task(told, hooks(), refute=False).verdict == "unknown"


def test_a_lie_is_refuted_at_one_length_of_the_range() -> None:
    told = _told(ranged(4, "gathered", LOW, 512), "local / length", "local / (length + 1)")
    assert prove_task(told, hooks()).verdict == "refuted"
