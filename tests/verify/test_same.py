"""Equality of terms where the same thing is read many times over."""

from __future__ import annotations

from typing import Any

import pytest

from quire.verify import term as t
from quire.verify.decide import divmod_, prove
from quire.verify.poly import Poly, atom_of, poly, variable
from quire.verify.same import same
from quire.verify.term import Term
from quire.verify.term.core import RANGES


def chain(levels: int, guard: Any, i: Poly) -> Term:
    """A chain of norms and guarded sums at `i`, each of which reads the level below twice."""
    below = t.read("x", [i])
    for level in range(levels):

        def centred(at: Poly, below: Term = below) -> Term:
            mean = t.bind("sum", poly(7), below, i)
            return t.add((1, t.substitute(below, {atom_of(i): at})), (-1, mean))

        def weighed(j: Poly, level: int = level, centred: Any = centred) -> Term:
            weight = t.read(f"w{level}", [i, j])
            return t.mul((weight, 1), (t.ind(guard(i, j)), 1), (centred(j), 1))

        square = t.bind("sum", poly(7), lambda j, f=centred: t.mul((f(j), 2)))
        total = t.bind("sum", poly(7), weighed)
        below = t.mul((t.make("fn", "rsqrt", square), 1), (total, 1))
    return below


def guards(shift: int) -> tuple[Any, Any]:
    """One condition spelled in two ways: of `2·(i + j)` and of `i + j`; off by `shift`."""
    return (
        lambda i, j: t.ge(2 * i + 2 * j - 7),
        lambda i, j: t.ge(i + j - 4 + shift),
    )


@pytest.mark.parametrize(("shift", "equal"), [(0, True), (1, False)])
def test_a_long_chain_that_reads_each_level_again(shift: int, equal: bool) -> None:
    i = variable("i", [0], [6])
    left, right = (chain(9, guard, i) for guard in guards(shift))
    assert left is not right
    assert same(left, right) is equal


@pytest.mark.parametrize(
    ("change", "equal"), [((0, 0), True), ((1, 0), False), ((0, 1), False)], ids=str
)
def test_a_sum_and_its_digits(change: tuple[int, int], equal: bool) -> None:
    """Σ_{j<24} x[j div 6, j mod 6 div 2, j mod 2] is three sums; none with another step or size."""
    step, size = change
    j = variable("j", [0], [23])
    high, rest = divmod_(j, poly(6))
    flat = t.bind("sum", poly(24), t.read("x", [high, *divmod_(rest, poly(2))]), j)

    def part(a: Poly, b: Poly, c: Poly) -> Term:
        return t.read("x", [a, b + step * a, c])

    sums = t.bind(
        "sum", poly(4 - size),
        lambda a: t.bind("sum", poly(3), lambda b: t.bind("sum", poly(2), lambda c: part(a, b, c))),
    )  # fmt: skip
    assert same(flat, sums) is equal
    bias = t.read("b", [poly(0)])
    assert same(t.add((1, flat), (1, bias)), t.add((1, sums), (1, bias))) is equal


def test_sums_in_another_order_of_digits_are_not_one() -> None:
    """Not a law that is used: the digits of one sum are not matched with those of another."""
    flat = t.bind("sum", poly(6), lambda j: t.read("x", list(divmod_(j, poly(2)))))
    other = t.bind(
        "sum", poly(3), lambda a: t.bind("sum", poly(2), lambda b: t.read("x", [b, a]))
    )  # fmt: skip
    assert not same(flat, other)


def test_an_integer_chosen_by_a_condition() -> None:
    """(i + 6) mod 8 and i − 2 or i + 6, whichever lies in the row: a rolled index."""
    i = variable("i", [0], [7])
    turned = divmod_(i + 6, poly(8))[1]
    for shift, equal in ((2, True), (3, False)):
        chosen = t.ite(t.ge(i - shift), i - shift, i - shift + 8)
        assert same(t.read("x", [turned]), t.read("x", [chosen])) is equal


def test_a_wrapped_index_stays_in_range() -> None:
    RANGES["at"] = (-6, 5)
    try:
        at = t.int_of(t.read("at", [poly(0)]))
        wrapped = t.ite(t.ge(at), at, at + 6)
        assert prove(wrapped) and prove(5 - wrapped) and not prove(4 - wrapped)
    finally:
        RANGES.clear()


def test_the_log_of_a_shifted_sum() -> None:
    """log Σ exp(x − m) = −m + log Σ exp(x): the shift comes out, whatever it is."""
    m, i = t.read("m", [poly(0)]), variable("i", [0], [4])

    def mass(shift: Any) -> Term:
        def term(j: Poly) -> Term:
            return t.exp(t.add((1, t.read("x", [j])), *shift))

        return t.fn("log", t.bind("sum", poly(5), term))

    own = t.read("x", [i])
    plain = t.add((1, own), (-1, mass(())))
    shifted = t.add((1, own), (-1, m), (-1, mass([(-1, m)])))
    assert same(plain, shifted)
    assert not same(plain, t.add((1, own), (-1, m), (-1, mass([(1, m)]))))
    assert not same(plain, t.add((1, own), (-1, mass([(-1, m)]))))


def test_the_log_of_what_may_be_negative_is_left_alone() -> None:
    a, b = t.read("a", [poly(0)]), t.read("b", [poly(0)])
    assert t.fn("log", t.mul((t.exp(a), 1), (b, 1))).op == "fn"
    assert t.fn("log", t.mul((t.exp(a), 1), (t.exp(b), -2))) is t.add((1, a), (-2, b))
