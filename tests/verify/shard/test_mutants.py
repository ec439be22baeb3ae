"""Seeded lies about sharded programs and their runtime: none is accepted."""

from __future__ import annotations

import random

import pytest

from quire.shard_proof import hooks
from tests.verify.shard.cases import ranged, sharded
from tools.mutate_shard import LOCAL, judge, lies

EACH = 5
ROUTED = 8


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_no_lie_is_accepted(way: str) -> None:
    made = list(lies(sharded("llama", 13, 4, way), hooks()))
    assert len(made) > 50
    random.Random(way).shuffle(made)
    answers = [(judge(lie), lie.what) for lie in made[:EACH]]
    assert not [a for a in answers if a[0] == "ACCEPTED"]
    assert len([a for a in answers if a[0] in ("unknown", "refuted", "fails")]) >= EACH - 2


def test_no_lie_about_routed_tokens_is_accepted() -> None:
    """Tokens sorted, counted, put back and given to experts otherwise."""
    every = [
        m for m in lies(sharded("mixtral", 13, 4, "gathered"), hooks()) if m.kind == "wrong route"
    ]
    made = every[: len(every) // 2]  # of the first of two equal layers
    assert len(made) >= 12
    random.Random(0).shuffle(made)
    answers = [(judge(lie), lie.what) for lie in made[:ROUTED]]
    assert all(answer in ("unknown", "refuted") for answer, _ in answers), answers


def test_no_lie_about_the_spread_of_tokens_is_accepted() -> None:
    """The auxiliary loss of a mixture of experts: sums and counts of a rank's own tokens."""
    made = [
        m
        for m in lies(sharded("mixtral-aux", 13, 4, "gathered"), hooks())
        if m.kind in (LOCAL, "missing collective") and not m.exact
    ]
    assert len([m for m in made if m.kind == LOCAL]) == 5
    answers = [(judge(lie), lie.what) for lie in made]
    assert all(answer in ("unknown", "refuted") for answer, _ in answers), answers


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_no_lie_is_accepted_at_all_lengths(way: str) -> None:
    made = list(lies(ranged(4, way, 57, 256), hooks()))
    assert len(made) > 30
    random.Random(way).shuffle(made)
    answers = [(judge(lie), lie.what) for lie in made[:EACH]]
    assert not [a for a in answers if a[0] == "ACCEPTED"]
    assert len([a for a in answers if a[0] in ("unknown", "refuted", "fails")]) >= EACH - 2
