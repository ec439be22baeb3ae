"""Seeded lies about sharded programs and their runtime: none is accepted."""

from __future__ import annotations

import random

import pytest

from quire.shard_proof import hooks
from tests.verify.shard.cases import sharded
from tools.mutate_shard import judge, lies

EACH = 5


@pytest.mark.parametrize("way", ["ulysses", "ring", "gathered", "hybrid"])
def test_no_lie_is_accepted(way: str) -> None:
    made = list(lies(sharded("llama", 13, 4, way), hooks()))
    assert len(made) > 50
    random.Random(way).shuffle(made)
    answers = [(judge(lie), lie.what) for lie in made[:EACH]]
    assert not [a for a in answers if a[0] == "ACCEPTED"]
    assert len([a for a in answers if a[0] in ("unknown", "refuted", "fails")]) >= EACH - 2
