"""Lengths that are free: what is known of them, so that each rank's rows are a polynomial.

A padded sequence is whole grains of K rows (`Order.grain`). A length s of m grains lies in

    K·m − K + 1 ≤ s ≤ K·m

for one m ≥ 1, and rows and blocks are numbers of m. With m and s both free, and bounded so, what is
shown holds for every length. Ranges begin where m ≥ K: padding is then shorter than any rank's rows
of a block, so that all ranks have rows, and where a block ends depends on m alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import sympy

from quire.capture.program import Program
from quire.verify.poly import Atom, Poly, substitute, variable
from quire.verify.shard.length import Length, number
from quire.verify.shard.order import Order
from quire.verify.shard.task import Hint, Range
from quire.verify.sizes import Sizes
from quire.verify.value import NoMeaning, NotShown

Kind = TypeVar("Kind")


def least(order: Order) -> int:
    """The least size of which, and of all above, every rank has rows of each of its blocks."""
    return order.grain * (order.grain - 1) + 1


def sizes_of(program: Program, ranges: Sequence[Range], hints: Iterable[Hint]) -> Sizes:
    """The program's sizes, its lengths by what is known of them in these ranges.

    Raises NoMeaning where one length is that of several sequences, NotShown where a range begins
    too early.
    """
    known = Sizes(program)
    orders = {at.order for at in hints if at is not None and isinstance(at.order.size, sympy.Expr)}
    for name, low, high in ranges:
        own = [o for o in orders if name in o.size.free_symbols]
        known.symbols[str(name)] = _variable(str(name), low, high, name, own)
    return known


def _variable(text: str, low: int, high: int, name: sympy.Symbol, orders: Sequence[Order]) -> Poly:
    if not orders:
        return variable(text, [low], [high])
    if len(orders) > 1:
        shown = ", ".join(sorted(str(o.size) for o in orders))
        raise NoMeaning(f"sequences of {shown} rows: more than one for a length")
    (order,) = orders
    more: Any = order.size - name
    if not isinstance(more, sympy.Integer):
        raise NoMeaning(f"a sequence of {order.size} rows")
    more, grain = int(more), order.grain
    if low + more < least(order):
        raise NotShown(
            f"lengths from {low} on: on {order.ranks} ranks, zigzag over {order.ring}, every rank "
            f"has rows of each of its blocks from {least(order) - more} on"
        )
    m = variable("m", [-(-(low + more) // grain)], [-(-(high + more) // grain)])
    return variable(text, [m * grain - (grain - 1 + more), low], [m * grain - more, high])


def placed(at: Hint, sizes: Sizes) -> Hint:
    """A hint with its size as the proof knows it."""
    if at is None or isinstance(at.order.size, int):
        return at
    return attrs.evolve(at, order=attrs.evolve(at.order, size=number(sizes(at.order.size))))


def cases(made: Kind) -> Iterator[Kind]:
    """An order, or a call of attention, without and with padding: lengths of whole grains, and all
    others."""
    kind: Any = type(made)
    fields = [getattr(made, f.name) for f in attrs.fields(kind)]
    free = sorted({x for p in _polynomials(fields) for x in p.free if _is_free(x)}, key=_id)
    for ends in itertools.product(*map(_cases, free)):
        to = dict(zip(free, ends, strict=True))
        yield kind(*(_put(field, to) for field in fields))


def _id(x: Atom) -> int:
    return x.id


def _is_free(x: Atom) -> bool:
    return x.kind == "var" and bool(x.upper) and x.upper[0].constant is None


def _cases(x: Atom) -> list[Poly]:
    whole, *rest = x.upper
    if x.lower[0] is whole:
        return [whole]
    return [whole, variable(x.name, x.lower, [whole - 1, *rest])]


def _polynomials(value: Any) -> Iterator[Poly]:
    if isinstance(value, Length):
        yield value.poly
    elif isinstance(value, list | tuple):
        for x in value:
            yield from _polynomials(x)


def _put(value: Any, to: Mapping[Atom, Poly]) -> Any:
    if isinstance(value, Length):
        return number(substitute(value.poly, to))
    return tuple(_put(x, to) for x in value) if isinstance(value, tuple) else value
