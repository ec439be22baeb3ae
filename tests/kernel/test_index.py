"""Index arithmetic, against the same arithmetic on numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quire.kernel import index as ix
from quire.kernel.evaluate import evaluate
from quire.kernel.ir import Call, Num, Var

SIZES = {"a": 4, "b": 6, "c": 5}
VARS = [Var(name, size) for name, size in SIZES.items()]


def grid():
    axes = np.meshgrid(*(np.arange(s) for s in SIZES.values()), indexing="ij")
    return {name: axis.reshape(-1) for name, axis in zip(SIZES, axes, strict=True)}


leaf = st.one_of(st.sampled_from(VARS), st.integers(0, 9).map(Num))


def grown(inner):
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: (Call("add", p), ix.add(*p))),
        st.tuples(inner, st.integers(0, 12)).map(
            lambda p: (Call("mul", (p[0], Num(p[1]))), ix.mul(p[0], Num(p[1])))
        ),
        st.tuples(inner, st.integers(1, 12)).map(
            lambda p: (Call("idiv", (p[0], Num(p[1]))), ix.div(*p))
        ),
        st.tuples(inner, st.integers(1, 12)).map(
            lambda p: (Call("imod", (p[0], Num(p[1]))), ix.mod(*p))
        ),
    )


@st.composite
def expressions(draw, depth=4):
    """The same integer expression twice: as written, and as simplified on the way."""
    if depth == 0 or draw(st.booleans()):
        e = draw(leaf)
        return e, e
    kind = draw(st.sampled_from(["add", "mul", "idiv", "imod"]))
    plain, neat = draw(expressions(depth - 1))
    if kind == "add":
        other, tidy = draw(expressions(depth - 1))
        return Call("add", (plain, other)), ix.add(neat, tidy)
    by = draw(st.integers(1, 12))
    make = {"mul": lambda e, n: ix.mul(e, Num(n)), "idiv": ix.div, "imod": ix.mod}[kind]
    return Call(kind, (plain, Num(by))), make(neat, by)


@given(expressions())
def test_simplified_arithmetic_is_equal(pair):
    plain, neat = pair
    env = grid()
    assert np.array_equal(
        np.broadcast_to(evaluate(plain, env), env["a"].shape),
        np.broadcast_to(evaluate(neat, env), env["a"].shape),
    )
    low, high = ix.bound(neat)
    value = evaluate(neat, env)
    assert low is None or low <= np.min(value)
    assert high is None or np.max(value) <= high


@st.composite
def reshapes(draw):
    """Two shapes of the same number of elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=5))

    def grouped():
        shape, k = [], 0
        while k < len(factors):
            step = draw(st.integers(1, len(factors) - k))
            shape.append(int(np.prod(factors[k : k + step])))
            k += step
        for _ in range(draw(st.integers(0, 2))):
            shape.insert(draw(st.integers(0, len(shape))), 1)
        return shape

    return grouped(), grouped()


@given(reshapes())
def test_reindex_is_reshape(shapes):
    new, old = shapes
    data = np.arange(int(np.prod(new))).reshape(new)
    axes = np.meshgrid(*(np.arange(s) for s in new), indexing="ij")
    env = {f"i{k}": axis.reshape(-1) for k, axis in enumerate(axes)}
    place = ix.reindex([Var(f"i{k}", s) for k, s in enumerate(new)], new, old)
    found = data.reshape(old)[tuple(np.broadcast_to(evaluate(e, env), data.size) for e in place)]
    assert np.array_equal(found, data.reshape(-1))


def test_heads_of_a_row_join_without_division():
    k = Var("k", 64)
    place = ix.reindex((k,), (64,), (4, 16))
    assert ix.flatten(place, (4, 16)) == k


def test_literals_of_two_kinds_are_two() -> None:
    assert Num(2) != Num(2.0)
    assert Num(1) != Num(True)
    assert len({Num(2), Num(2.0), Num(2)}) == 2
