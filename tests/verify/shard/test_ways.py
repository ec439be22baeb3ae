"""The text of each way of attention: read as it is, and with heads, rows or hops dealt wrongly."""

from __future__ import annotations

import pytest

from quire.shard_proof import hooks
from quire.verify.prove import reset
from quire.verify.shard.attend import Call
from quire.verify.shard.order import Order
from quire.verify.shard.ways import ATTENTION, RING, shown
from quire.verify.value import NoMeaning, NotShown


def call(way: str, heads: int, kv: int, ranks: int, ring: int, ring_of: int = 1) -> Call:
    rows = Order(13, ranks, ring).rows
    q, k = (2, heads, rows, 4), (2, kv, rows, 4)
    return Call(way, q, k, k, 13, 13, ranks, ring, ring_of, (None, 0), None)


HONEST = [
    ("ulysses", 8, 4, 4, 1, 1),
    ("ulysses", 8, 2, 4, 4, 1),
    ("ulysses", 6, 3, 4, 1, 1),  # heads that the ranks do not divide
    ("gathered", 8, 4, 4, 4, 1),
    ("ring", 8, 4, 4, 4, 1),
    ("ring", 8, 4, 4, 1, 1),
    ("hybrid", 8, 4, 8, 2, 2),
    ("hybrid", 8, 4, 8, 4, 4),
    ("hybrid", 8, 4, 8, 2, 4),
]


@pytest.mark.parametrize("made", HONEST)
def test_it_does_what_it_says(made: tuple[str, int, int, int, int, int]) -> None:
    reset()
    shown(call(*made), hooks().texts)


LIES = [
    ("ulysses", ATTENTION, "permute(2, 0, 1, 3, 4)", "permute(2, 1, 0, 3, 4)"),
    ("ulysses", ATTENTION, "movedim(0, 1).flatten(1, 2)", "movedim(0, 2).flatten(1, 2)"),
    ("ulysses", ATTENTION, "x.narrow(2, start, n)", "x.narrow(2, 0, n)"),
    ("ulysses", ATTENTION, "min(i, last) for i in range", "last - min(i, last) for i in range"),
    ("ulysses", ATTENTION, "return x.narrow(2, runs[0][0], layout.size)", "return x"),
    ("ulysses", ATTENTION, "is_causal=site.right is not None", "is_causal=False"),
    ("hybrid", ATTENTION, "site.q.pieces(m * parts, parts)", "site.q.pieces(m, parts)"),
    ("hybrid", ATTENTION, "site.k.pieces(m * parts, parts)", "site.k.pieces(0, parts)"),
    ("hybrid", ATTENTION, "x.permute(1, 2, 0, 3, 4)", "x.permute(1, 0, 2, 3, 4)"),
    ("ring", ATTENTION, "flat(rows),\n        flat(keys)", "flat(keys),\n        flat(rows[::-1])"),
    ("ring", ATTENTION, "[site.q.runs(r) for r", "[site.q.runs(0) for r"),
    ("gathered", ATTENTION, "torch.stack([k, v])", "torch.stack([v, k])"),
    ("gathered", ATTENTION, "every.movedim(0, 3)", "every.flip(0).movedim(0, 3)"),
    ("gathered", RING, "for member, rows in enumerate(runs)", "for member, rows in [(0, runs[0])]"),
]


@pytest.mark.parametrize(("way", "file", "old", "new"), LIES)
def test_a_lie_is_not_shown(way: str, file: str, old: str, new: str) -> None:
    texts = hooks().texts
    assert old in texts[file]
    reset()
    ring = 4 if "start" in old else 1
    made = call(way, 8, 4, 8, 2, 2) if way == "hybrid" else call(way, 8, 4, 4, ring)
    with pytest.raises((NotShown, NoMeaning, ValueError, TypeError)):
        shown(made, {**texts, file: texts[file].replace(old, new)})
