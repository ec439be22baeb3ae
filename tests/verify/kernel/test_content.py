"""Places decoded and inverted: against numpy, over all elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify import term as t
from quire.verify.kernel.content import decode, dense, image, inverse
from quire.verify.kernel.cover import grid, once, values
from quire.verify.poly import ZERO, atom_of, index, poly, substitute, variable
from quire.verify.term import substitute as substitute_term
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


@given(st.data(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_image_says_what_is_written_and_from_where(data: Any, dims: int) -> None:
    """Each dim a constant, or a loop of its own moved by a constant."""
    sizes = [data.draw(st.integers(2, 5)) for _ in range(dims)]
    at, loops = [], []
    for n in sizes:
        run = data.draw(st.integers(0, n))
        low = data.draw(st.integers(0, n - max(run, 1)))
        if run < 2:
            at.append(poly(low))
            continue
        x = variable("x", [0], [run - 1])
        loops.append((atom_of(x), poly(run)))
        at.append(x + low)
    shape = tuple(map(poly, sizes))
    found = image(at, shape, loops)
    assert found is not None
    condition, to = found
    written = np.zeros(sizes, dtype=bool)
    env = grid(loops)
    places = [np.broadcast_to(values(p, env), [n.constant or 0 for _, n in loops]) for p in at]
    written[tuple(p.reshape(-1) for p in places)] = True
    for k in np.ndindex(*sizes):
        here = {atom_of(index(d, n)): poly(k[d]) for d, n in enumerate(shape)}
        assert (substitute_term(condition, here) is t.TRUE) == written[k]
        if written[k]:
            back = {x: substitute(p, here) for x, p in to.items()}
            assert [substitute(p, back).constant for p in at] == list(k)


def test_image_refuses_a_diagonal() -> None:
    x = variable("x", [0], [3])
    shape = (poly(4), poly(4))
    assert image([x, x], shape, [(atom_of(x), poly(4))]) is None
    assert image([x, poly(0)], shape, [(atom_of(x), poly(4))]) is not None
    assert image([x * 2, poly(0)], (poly(8), poly(4)), [(atom_of(x), poly(4))]) is None


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
