"""Where rows lie: the prover's own account against the runtime's table."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.plan.layout import Layout
from quire.verify.poly import poly, variable
from quire.verify.prove import reset
from quire.verify.shard.order import Mesh, Order, place

RINGS = st.sampled_from(
    [(p, r) for p in (1, 2, 3, 4, 6, 8, 64) for r in (1, 2, 4, 64) if p % r == 0]
)


@settings(deadline=None)
@given(st.integers(1, 300), RINGS)
def test_it_is_the_runtimes_table(size: int, mesh: tuple[int, int]) -> None:
    order, layout = Order(size, *mesh), Layout(size, *mesh)
    assert (order.rows, order.padded) == (layout.local, layout.padded)
    for rank in range(order.ranks):
        for at, start, count in layout.runs(rank):
            flat = rank * order.rows + at
            assert [order.at(flat + i) for i in range(count)] == list(range(start, start + count))


@settings(deadline=None)
@given(st.integers(1, 300), RINGS)
def test_each_place_once(size: int, mesh: tuple[int, int]) -> None:
    order = Order(size, *mesh)
    assert sorted(map(order.at, range(order.padded))) == list(range(order.padded))


def test_a_place_is_known_where_the_block_is() -> None:
    reset()
    order = Order(16, 4, 4)
    i = variable("i", [0], [1])
    assert place(order, i + 4) is i + 2  # the first half of member 1's four rows
    assert place(order, i + 6) is i + 12
    assert place(order, poly(3)) is poly(15)


def test_a_place_is_not_known_on_a_rank_that_is_not() -> None:
    reset()
    order = Order(16, 4)
    mesh = Mesh(4)
    i = variable("i", [0], [3])
    assert place(order, mesh.flat(order, i)) is not mesh.flat(order, i)
    assert place(order, i + 8) is i + 8
