"""Expressions as C++ means them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.verify import term as t
from quire.verify.decide import Premises
from quire.verify.kernel.evaluate import Evaluator, Pointer
from quire.verify.kernel.source import functions
from quire.verify.poly import Poly, atom_of, poly, substitute, variable
from quire.verify.value import NoMeaning, NotShown
from tests.verify.kernel.test_source import WHOLE


class Nothing:
    """Memory that holds nothing."""

    def load(self, pointer: Pointer, at: Poly, path: Premises) -> Any:
        raise NoMeaning("no memory")

    def length(self, k: int) -> Poly:
        return poly(7)

    def inside(self, size: Poly, body: Any) -> Any:
        var = variable("k", [0], [size - 1])
        return var, body(var)


def value(text: str, **env: Any) -> Any:
    (let,) = functions(WHOLE.format(f"const auto v1 = {text};"))["step"]
    return Evaluator(Nothing()).value(let.value, env)  # type: ignore[union-attr]


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_integers(a: int, b: int, c: int) -> None:
    i = variable("i", [0], [100])
    found = value(f"(i1 * {c} + {a}) / {b} - i1 % {b}", i1=i)
    for k in (0, 3, 100):
        want = (k * c + a) // b - k % b
        assert substitute(found, {atom_of(i): poly(k)}).constant == want


def test_cpp_divides_towards_zero() -> None:
    assert value("7 / 2") == 3
    with pytest.raises(NotShown):
        value("i1 / 2", i1=variable("i", [-3], [3]))


def test_an_int_may_overflow() -> None:
    assert value("index_t(65536) * 65536").constant == 1 << 32
    with pytest.raises(NoMeaning):
        value("65536 * 65536")


def test_a_branch_knows_its_condition() -> None:
    i = variable("i", [0], [9])
    found = value("i1 < 4 ? 0 : (i1 - 4) / 3", i1=i)
    assert substitute(found, {atom_of(i): poly(9)}).constant == 1
    with pytest.raises(NotShown):
        value("i1 < 3 ? 0 : (i1 - 4) / 3", i1=i)


def test_folds() -> None:
    x = t.make("fn", "x", t.of_int(poly(0)))
    assert value("q.sum(4, [&](auto k1) { return x1; })", x1=x) is t.mul((t.const(4), 1), (x, 1))
    assert value("q.max(q.length(0), [&](auto k1) { return x1; })", x1=x) is x


@pytest.mark.parametrize("text", ["y1", "q.rand()", "1.5f", "f(1)", "q.share(0, 1, 9, 8, 1)"])
def test_refuses(text: str) -> None:
    with pytest.raises((NoMeaning, NotShown)):
        value(text)
