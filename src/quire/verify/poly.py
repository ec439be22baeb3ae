"""Integer expressions in one normal form: polynomials over atoms.

An atom is a size, an index, or a call that a polynomial cannot hold: the smaller or larger of
two, a quotient, a remainder, an integer read from a tensor. Atoms carry what is known about them
for all values they can take, so that a fact about an expression follows from the expression.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

Mono = tuple["Atom", ...]

_ids = itertools.count()
_table: dict[Any, Any] = {}


class Atom:
    """`kind` is "var", "min", "max", "div", "mod" or "val"; `args` what the call is of.

    `lower` and `upper` are polynomials that bound it, both inclusive.
    """

    __slots__ = ("args", "free", "id", "kind", "lower", "name", "upper")

    def __init__(self, kind: str, name: str, args: tuple[Any, ...] = ()) -> None:
        self.id = next(_ids)
        self.kind, self.name, self.args = kind, name, args
        self.lower: list[Poly] = []
        self.upper: list[Poly] = []
        inner = frozenset().union(*(a.free for a in args)) if args else frozenset()
        self.free: frozenset[Atom] = inner | {self}

    def __repr__(self) -> str:
        if self.kind == "var":
            return self.name
        return f"{self.kind}({', '.join(map(str, self.args))})"


class Poly:
    """A polynomial with integer coefficients. Equal polynomials are one object."""

    __slots__ = ("free", "terms")

    terms: tuple[tuple[Mono, int], ...]
    free: frozenset[Atom]

    @staticmethod
    def of(terms: Mapping[Mono, int]) -> Poly:
        kept = [(m, c) for m, c in terms.items() if c]
        if len(kept) > 1:
            kept.sort(key=lambda t: [x.id for x in t[0]])
        key = tuple(kept)
        found = _table.get(key)
        if found is None:
            found = Poly()
            found.terms = key
            found.free = (
                frozenset().union(*(x.free for m, _ in key for x in m)) if key else frozenset()
            )
            _table[key] = found
        return found

    def __add__(self, other: Any) -> Poly:
        other = poly(other)
        total = dict(self.terms)
        for mono, coefficient in other.terms:
            total[mono] = total.get(mono, 0) + coefficient
        return Poly.of(total)

    def __mul__(self, other: Any) -> Poly:
        other = poly(other)
        if self is ONE:
            return other
        if other is ONE:
            return self
        total: dict[Mono, int] = {}
        for m, c in self.terms:
            for n, d in other.terms:
                mono = tuple(sorted(m + n, key=_id)) if m and n else m or n
                total[mono] = total.get(mono, 0) + c * d
        return Poly.of(total)

    def __neg__(self) -> Poly:
        return Poly.of({m: -c for m, c in self.terms})

    def __sub__(self, other: Any) -> Poly:
        return self + (-poly(other))

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Any) -> Poly:
        return poly(other) - self

    @property
    def constant(self) -> int | None:
        """The value, if there are no atoms."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    def split(self, x: Atom) -> tuple[Poly, Poly] | None:
        """`(c, r)` with `self = c·x + r`, x in neither; None if x stands in a higher power."""
        inside: dict[Mono, int] = {}
        rest: dict[Mono, int] = {}
        for mono, coefficient in self.terms:
            count = mono.count(x)
            if count > 1:
                return None
            if count:
                left = list(mono)
                left.remove(x)
                inside[tuple(left)] = coefficient
            else:
                rest[mono] = coefficient
        return Poly.of(inside), Poly.of(rest)

    def atoms(self) -> Iterator[Atom]:
        seen = set()
        for mono, _ in self.terms:
            for x in mono:
                if x not in seen:
                    seen.add(x)
                    yield x

    def __repr__(self) -> str:
        words = []
        for mono, c in self.terms:
            factors = [str(x) for x in mono]
            if c != 1 or not factors:
                factors.insert(0, str(c))
            words.append("*".join(factors))
        return " + ".join(words) if words else "0"


def _id(x: Atom) -> int:
    return x.id


ONE = Poly.of({(): 1})
ZERO = Poly.of({})


def poly(value: Any) -> Poly:
    """`value` as a polynomial: an int, an atom, or one already."""
    if isinstance(value, Poly):
        return value
    if isinstance(value, Atom):
        return Poly.of({(value,): 1})
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no integer expression")
    return Poly.of({(): value})


def product(sizes: Iterable[Poly]) -> Poly:
    total = ONE
    for size in sizes:
        total = total * size
    return total


def variable(name: str, lower: Iterable[Any] = (), upper: Iterable[Any] = ()) -> Poly:
    """A new variable with inclusive bounds."""
    x = Atom("var", name)
    x.lower, x.upper = [poly(v) for v in lower], [poly(v) for v in upper]
    return poly(x)


def atom_of(p: Poly) -> Atom:
    """The atom that `p` is."""
    ((mono, _),) = p.terms
    (x,) = mono
    return x


def index(k: int, size: Poly) -> Poly:
    """The canonical index of dim `k` of a tensor, of range `[0, size)`."""
    return _ranged(("index", k, size), f"i{k}", size)


def bound(height: int, size: Poly) -> Poly:
    """The canonical bound variable of a binder that has `height − 1` binders nested in it."""
    return _ranged(("bound", height, size), f"j{height}", size)


def _ranged(key: tuple[Any, ...], name: str, size: Poly) -> Poly:
    found = _table.get(key)
    if found is None:
        found = _table[key] = variable(name, [0], [size - 1])
        atom_of(found).args = ()
        atom_of(found).free = frozenset([atom_of(found)])
    return found


def call(kind: str, *args: Any) -> Poly:
    """The atom `kind(args)`: one object for equal arguments."""
    key = (kind, *args)
    found = _table.get(key)
    if found is None:
        x = Atom(kind, kind, args)
        if kind == "min":
            x.upper = list(args)
        elif kind == "max":
            x.lower = list(args)
        elif kind == "mod":
            x.lower, x.upper = [ZERO], [args[1] - 1]
        found = _table[key] = poly(x)
    return found


def substitute(p: Poly, to: Mapping[Atom, Poly], values: Any = None) -> Poly:
    """`p` with atoms replaced. `values(term, to)` replaces within a term that a "val" atom is of;
    calls are built anew by `rebuild`."""
    if p.free.isdisjoint(to):
        return p
    total = ZERO
    for mono, coefficient in p.terms:
        item = poly(coefficient)
        for x in mono:
            if x in to:
                item = item * to[x]
            elif x.free.isdisjoint(to):
                item = item * poly(x)
            else:
                item = item * cast(Any, REBUILD[x.kind])(x, to)
        total = total + item
    return total


REBUILD: dict[str, Any] = {}
"""How a call is made anew after a replacement in its arguments: `(atom, to) → Poly`. Filled in
where the calls are simplified."""
