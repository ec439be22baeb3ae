"""Indices split into digits: against numpy, over all elements."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify.decide import divmod_
from quire.verify.digits import digits
from quire.verify.kernel.cover import grid, values
from quire.verify.poly import Poly, atom_of, poly, substitute, variable


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_digits_split_what_is_divided(outer: int, inner: int, scale: int) -> None:
    size = poly(outer * inner)
    x = variable("x", [0], [size - 1])
    quotient, rest = divmod_(x * scale, poly(inner * scale))
    to, loops = digits([quotient, rest], [(atom_of(x), size)])
    assert [n.constant for _, n in loops] == [outer, inner]
    env = grid(loops)
    old = values(to[atom_of(x)], env)
    assert sorted(old.reshape(-1)) == list(range(outer * inner))
    for p, want in (
        (quotient, old * scale // (inner * scale)),
        (rest, old * scale % (inner * scale)),
    ):
        now: Poly = substitute(p, to)
        assert not any(y.kind == "div" for y in now.free)
        assert (values(now, env) == want).all()
