"""Euclid's division, structurally: against numpy, over all elements."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify.decide import divmod_
from quire.verify.kernel.cover import grid, values
from quire.verify.poly import atom_of, poly, variable


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_turned_digit_is_taken_out_whole(rows: int, width: int, shift: int, step: int) -> None:
    """Of step·(width·i + (j + shift) mod width), the row is i: what `roll` reads at."""
    i, j = variable("i", [0], [rows - 1]), variable("j", [0], [width - 1])
    turned = divmod_(j + shift, poly(width))[1]
    row, rest = divmod_((i * width + turned) * step, poly(width * step))
    assert row is i and rest is turned * step
    env = grid([(atom_of(i), poly(rows)), (atom_of(j), poly(width))])
    at = values((i * width + turned) * step, env)
    assert (values(row, env) == at // (width * step)).all()
    assert (values(rest, env) == at % (width * step)).all()


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-20, 20), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_quotients_and_remainders_are_floors(a: int, b: int, c: int, n: int) -> None:
    i, j = variable("i", [0], [4]), variable("j", [0], [3])
    p = i * a + j * b + c
    quotient, rest = divmod_(p, poly(n))
    env = grid([(atom_of(i), poly(5)), (atom_of(j), poly(4))])
    assert (values(quotient, env) == values(p, env) // n).all()
    assert (values(rest, env) == values(p, env) % n).all()
