"""An index that is data is known to be in range only where the graph reads at it."""

from __future__ import annotations

import pytest

from quire.verify import term as t
from quire.verify.decide import divmod_
from quire.verify.kernel.instance import shows
from quire.verify.poly import ONE, Poly, index, poly, variable


def shape() -> tuple[Poly, Poly]:
    return poly(5), poly(7)


def bucket(a: Poly, b: Poly) -> Poly:
    """A function of a distance, as T5's relative positions are."""
    far = t.of_int(b - a)
    return t.int_of(t.make("trunc", t.fn("tanh", far))) + 16 * t.int_of(t.ind(t.ge(b - a - 1)))


def known() -> Poly:
    """Made in each test: terms are told apart by identity, and forgotten between proofs."""
    return bucket(index(0, poly(5)), index(1, poly(7)))


def test_an_element_at_other_indices() -> None:
    g, j = variable("g", [0], [4]), variable("j", [0], [6])
    assert shows(known(), shape(), bucket(g, j))
    assert not shows(known(), shape(), bucket(j, g))
    assert not shows(known(), shape(), bucket(g, j) + 1)


@pytest.mark.parametrize(("last", "within"), [(6, True), (7, False)])
def test_an_index_outside_shows_nothing(last: int, within: bool) -> None:
    g, j = variable("g", [0], [4]), variable("j", [0], [last])
    assert shows(known(), shape(), bucket(g, j)) is within


def test_digits_of_one_index() -> None:
    s = variable("s", [0], [34])
    assert shows(known(), shape(), bucket(*divmod_(s, poly(7))))


@pytest.mark.parametrize(("last", "within"), [(3, True), (4, False)])
def test_what_is_read_of_a_part_says_nothing_of_the_rest(last: int, within: bool) -> None:
    """The graph reads at ids[:, :4]; ids[0, 4] may be anything."""
    ids = t.int_of(t.read("ids", [index(0, ONE), index(1, poly(4))]))
    i = variable("i", [0], [last])
    assert shows(ids, (ONE, poly(4)), t.int_of(t.read("ids", [poly(0), i]))) is within
