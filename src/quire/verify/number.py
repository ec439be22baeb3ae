"""Numbers of the emitted program: sizes, positions, and what is computed of them.

They stand in for Python's own in the text that runs. A comparison is decided by a proof over all
sizes; one that sizes do not decide raises NotShown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from quire.verify import term as t
from quire.verify.decide import divmod_, prove
from quire.verify.memory import Tensor
from quire.verify.poly import Poly, poly
from quire.verify.value import NotShown, require


class Int:
    """An integer of the emitted program that is not known: comparisons must be decided by what
    is."""

    def __init__(self, value: Any) -> None:
        self.poly = value.poly if isinstance(value, Int) else poly(value)

    def _with(self, other: Any, f: Callable[[Poly, Poly], Poly]) -> Any:
        if isinstance(other, Tensor | float):
            return NotImplemented
        return wrap(f(self.poly, plain(other)))

    def __add__(self, other: Any) -> Any:
        return self._with(other, operator.add)

    def __radd__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: y + x)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: y - x)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, operator.mul)

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return wrap(-self.poly)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: divided(x, y)[0])

    def __mod__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: divided(x, y)[1])

    def __truediv__(self, other: Any) -> Any:
        top, bottom = t.of_int(self.poly), t.of_int(plain(other))
        return Real(t.mul((top, 1), (bottom, -1)))

    def __eq__(self, other: Any) -> Any:
        p = self.poly - plain(other)
        if p.constant is not None:
            return p.constant == 0
        if prove(p - 1, why="branch") or prove(-p - 1, why="branch"):
            return False
        if prove(p, why="branch") and prove(-p, why="branch"):
            return True
        raise NotShown(f"a branch on {p} == 0, which sizes do not decide")

    def __ne__(self, other: Any) -> Any:
        return not self == other

    def __ge__(self, other: Any) -> bool:
        return _decided(self.poly - plain(other))

    def __le__(self, other: Any) -> bool:
        return _decided(plain(other) - self.poly)

    def __gt__(self, other: Any) -> bool:
        return _decided(self.poly - plain(other) - 1)

    def __lt__(self, other: Any) -> bool:
        return _decided(plain(other) - self.poly - 1)

    def __bool__(self) -> bool:
        return not self == 0  # noqa: SIM201  (`!=` asks for the truth of this)

    __hash__ = None  # type: ignore[assignment]


class Real:
    """A number of the emitted program that depends on sizes, such as `(b − a) / size`."""

    def __init__(self, term: t.Term) -> None:
        self.term = term


def divided(x: Poly, y: Poly) -> tuple[Poly, Poly]:
    require(prove(y - 1, why="divisor"), f"division by {y}")
    return divmod_(x, y)


def _decided(p: Poly) -> bool:
    if prove(p, why="branch"):
        return True
    if prove(-p - 1, why="branch"):
        return False
    raise NotShown(f"a branch on {p} >= 0, which sizes do not decide")


def wrap(p: Poly) -> Any:
    return p.constant if p.constant is not None else Int(p)


def plain(value: Any) -> Poly:
    return value.poly if isinstance(value, Int) else poly(value)
