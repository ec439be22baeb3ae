"""Places decoded and inverted: against numpy, over all elements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify.decide import divmod_
from quire.verify.kernel.content import decode, dense, digits, inverse
from quire.verify.kernel.cover import grid, once, values
from quire.verify.poly import ZERO, Poly, atom_of, index, poly, substitute, variable
from quire.verify.value import NotShown

SIZES = st.lists(st.integers(2, 5), min_size=1, max_size=4)


@given(SIZES)
@settings(max_examples=40, deadline=None)
def test_decode_is_unravel(sizes: list[int]) -> None:
    shape = tuple(map(poly, sizes))
    loops = [(atom_of(x), n) for x, n in ((variable("i", [0], [n - 1]), n) for n in shape)]
    at = ZERO
    for (x, _), step in zip(loops, dense(shape), strict=True):
        at = at + poly(x) * step
    env = grid(loops)
    flat = values(at, env)
    for got, want in zip(
        decode(at, shape, dense(shape), (), "x"), np.unravel_index(flat, sizes), strict=True
    ):
        assert (np.broadcast_to(values(got, env), want.shape) == want).all()


@given(SIZES, st.randoms())
@settings(max_examples=40, deadline=None)
def test_inverse_undoes(sizes: list[int], random) -> None:
    """A dim written by several loops as digits, in any order of loops."""
    total = int(np.prod(sizes))
    order = list(range(len(sizes)))
    random.shuffle(order)
    loops = [(atom_of(variable("i", [0], [n - 1])), poly(n)) for n in sizes]
    at, step = ZERO, 1
    for k in order:
        at = at + poly(loops[k][0]) * step
        step *= sizes[k]
    back = inverse([at], [poly(total)], loops)
    assert back is not None
    whole = index(0, poly(total))
    env = {atom_of(whole): np.arange(total)}
    assert (values(substitute(at, back), env) == np.arange(total)).all()


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


@pytest.mark.parametrize("shift", [-1, 1])
def test_decode_refuses_what_lies_outside(shift: int) -> None:
    shape = (poly(3), poly(4))
    i, j = variable("i", [0], [2]), variable("j", [0], [3])
    assert decode(i * 4 + j, shape, dense(shape), (), "x") == [i, j]
    with pytest.raises(NotShown):
        decode(i * 4 + j + shift, shape, dense(shape), (), "x")


def test_decode_knows_the_branch_it_is_in() -> None:
    shape = (poly(3), poly(4))
    i, j = variable("i", [0], [2]), variable("j", [0], [3])
    given_ = ((">=", j - 2),)
    assert decode(i * 4 + j - 2, shape, dense(shape), given_, "x") == [i, j - 2]


@pytest.mark.parametrize(
    ("places", "said"),
    [([[0, 1], [2, 3]], ""), ([[0, 1], [1, 3]], "1 of 4 is written 2"),
     ([[0, 1], [3]], "2 of 4 is written 0"), ([[0, 1, 2, 4]], "4 of 4")],
)  # fmt: skip
def test_once(places: list[list[int]], said: str) -> None:
    found = once([np.array(p) for p in places], 4)
    assert (said in found) if said else not found
