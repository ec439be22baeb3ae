"""Euclid's division, structurally: against numpy, over all elements."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify.decide import divmod_
from quire.verify.kernel.cover import grid, values
from quire.verify.poly import atom_of, poly, variable


@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 6), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_turned_digit_stays_where_it_is(planes: int, rows: int, width: int, shift: int) -> None:
    """Of (i·rows + k)·width + (j + shift) mod width, the plane is i: what `roll` reads at."""
    sizes = (planes, rows, width)
    i, k, j = (variable("i", [0], [n - 1]) for n in sizes)
    turned = divmod_(j + shift, poly(width))[1]
    at = (i * rows + k) * width + turned
    plane, rest = divmod_(at, poly(rows * width))
    assert plane is i and rest is k * width + turned
    env = grid([(atom_of(x), poly(n)) for x, n in zip((i, k, j), sizes, strict=True)])
    assert (values(plane, env) == values(at, env) // (rows * width)).all()


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-20, 20), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_quotients_and_remainders_are_floors(a: int, b: int, c: int, n: int) -> None:
    i, j = variable("i", [0], [4]), variable("j", [0], [3])
    p = i * a + j * b + c
    quotient, rest = divmod_(p, poly(n))
    env = grid([(atom_of(i), poly(5)), (atom_of(j), poly(4))])
    assert (values(quotient, env) == values(p, env) // n).all()
    assert (values(rest, env) == values(p, env) % n).all()
