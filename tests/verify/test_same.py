"""Equality of terms where the same thing is read many times over."""

from __future__ import annotations

from typing import Any

import pytest

from quire.verify import term as t
from quire.verify.poly import Poly, atom_of, poly, variable
from quire.verify.same import same
from quire.verify.term import Term


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
