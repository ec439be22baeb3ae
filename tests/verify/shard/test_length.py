"""Integers that are no numbers: what is asked of them is answered for every length, or not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.plan.layout import Layout
from quire.shard_proof import hooks
from quire.verify.poly import poly, variable
from quire.verify.prove import reset
from quire.verify.shard.attend import Call
from quire.verify.shard.free import cases
from quire.verify.shard.length import Length, as_poly, number
from quire.verify.shard.order import Order, edges
from quire.verify.shard.prove import _table_differs
from quire.verify.value import NotShown


def length(grain: int, low: int) -> tuple[Any, Any]:
    """Grains m from `low` on, and a length of so many grains, the last not always whole."""
    m = variable("m", [low])
    return Length(m), Length(variable("s", [m * grain - grain + 1], [m * grain]))


def test_arithmetic_is_that_of_integers() -> None:
    reset()
    m, s = length(4, 4)
    assert s + 1 - s == 1 and type(s + 1 - s) is int
    assert 2 * m - m == m and hash(m + 0) == hash(m) and 0 - (-m) == m
    assert (8 * m) // 4 == 2 * m and (8 * m + 3) % 4 == 3
    assert (6 * m + 1) // m == 6 and divmod(6 * m + 1, 2 * m) == (3, 1)
    assert -(-s // 4) == m and as_poly(-(-s // 4)) is as_poly(m)
    assert number(poly(3)) == 3


def test_half_of_a_quotient_is_found_by_where_it_lies() -> None:
    """As the runtime rounds up a block: −(−rows // 2)·2, rows themselves a quotient."""
    reset()
    m, s = length(8, 8)
    rows = -(-s // 4)
    assert -(-rows // 2) * 2 == 2 * m


def test_what_follows_is_answered_and_nothing_else() -> None:
    reset()
    m, s = length(4, 4)
    assert 3 * m < s and s <= 4 * m and m > 3 and m and m != 3
    assert max(3 * m, s) == s and sorted([s, 0, m]) == [0, m, s]
    for asked in (lambda: s < 4 * m, lambda: s == 4 * m, lambda: m > 4, lambda: bool(m - 4)):
        with pytest.raises(NotShown):
            asked()
    with pytest.raises(TypeError):
        range(m)


RINGS = st.sampled_from([(p, r) for p in (1, 2, 3, 4, 6, 8) for r in (1, 2, 4, 8) if p % r == 0])


@settings(deadline=None, max_examples=25)
@given(RINGS, st.integers(0, 40), st.integers(0, 40))
def test_the_runtimes_table_is_the_provers_at_every_length(
    mesh: tuple[int, int], more: int, short: int
) -> None:
    """Read once for all lengths, and the rows of one of them those of ints."""
    reset()
    grain = Order(1, *mesh).grain
    _, s = length(grain, grain)
    units, pad = grain + more, short % grain
    whole, *ragged = cases(Order(s, *mesh))
    order = ragged[0] if pad else whole
    runs = hooks().runs(order.size, *mesh)
    assert _table_differs(order, runs) == ""

    def at(x: Any) -> int:
        p = as_poly(x)
        values = {"m": units, "s": units * grain - pad}
        total = 0
        for mono, c in p.terms:
            for atom in mono:
                c *= values[atom.name]
            total += c
        return total

    layout = Layout(units * grain - pad, *mesh)
    assert (at(order.rows), at(order.padded)) == (layout.local, layout.padded)
    for rank, own in enumerate(runs):
        assert [tuple(map(at, run)) for run in own] == list(layout.runs(rank))


@pytest.mark.parametrize("wrong", ["lost", "twice", "late", "shifted"])
def test_a_table_that_is_another_is_told(wrong: str) -> None:
    reset()
    _, s = length(8, 8)
    order = next(cases(Order(s, 4, 4)))
    runs = [list(r) for r in hooks().runs(order.size, 4, 4)]
    at, start, count = runs[2][0]
    if wrong == "lost":
        runs[2][0] = (at, start, count - 1)
    elif wrong == "twice":
        runs[2].append(runs[2][-1])
    elif wrong == "late":
        runs[2][0] = (at + 1, start + 1, count - 1)
    else:
        runs[2][0] = (at, start + 1, count)
    assert _table_differs(order, runs) != ""


def test_where_blocks_begin() -> None:
    reset()
    m, s = length(8, 8)
    assert edges(m, 2 * m, m) == [0, m]
    assert edges(0, s, 4 * m) == [0, 4 * m]
    assert edges(1, 9, 4) == [3, 7]


def test_padding_is_none_or_some() -> None:
    """A call for whole grains, and one for the lengths between them: together all."""
    reset()
    m, s = length(4, 4)
    q = (1, 2, m, 4)
    made = Call("ulysses", q, q, q, s, s, 4, 1, 1, (None, 0), None)
    whole, ragged = cases(made)
    assert whole.q_size == 4 * m and whole.q == q
    assert ragged.q_size < 4 * m and ragged.q_size > 4 * m - 4
    own = (1, 2, 4, 4)
    fixed = Call("ulysses", own, own, own, 13, 13, 4, 1, 1, (None, 0), None)
    assert list(cases(fixed)) == [fixed]
