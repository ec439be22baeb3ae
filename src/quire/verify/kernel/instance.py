"""Whether an integer is an element of a tensor that is known as a function of its index."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from quire.verify.decide import prove
from quire.verify.poly import ONE, ZERO, Atom, Poly, atom_of, index, poly, single, substitute

TRIED = 256
"""Indices tried, at most."""


def shows(known: Poly, shape: Sequence[Poly], p: Poly) -> bool:
    """Whether `p` is `known`, over the canonical indices of `shape`, at an index within it. False:
    not found, among the indices that `p` is made of."""
    if sorted(c for _, c in known.terms) != sorted(c for _, c in p.terms):
        return False
    dims = [(atom_of(index(d, n)), n) for d, n in enumerate(shape)]
    dims = [(x, n) for x, n in dims if x in known.free]
    read = _read_at(known, p)
    near = list(_indices_in(p))
    choices = [[ZERO] if n is ONE else [read[x]] if x in read else near for x, n in dims]
    for at in itertools.islice(itertools.product(*choices), TRIED):
        to = {x: q for (x, _), q in zip(dims, at, strict=True)}
        if substitute(known, to) is p:
            return all(
                prove(q, why="an index of data") and prove(n - 1 - q, why="an index of data")
                for (_, n), q in zip(dims, at, strict=True)
            )
    return False


def _read_at(known: Poly, p: Poly) -> dict[Atom, Poly]:
    """Canonical indices as `p` has them where it reads the tensors that `known` reads."""
    reads = {x.args[0].args[0]: x.args[0].args[1] for x in p.free
             if x.kind == "val" and x.args[0].op == "read"}  # fmt: skip
    found: dict[Atom, Poly] = {}
    for x in known.free:
        if x.kind != "val" or x.args[0].op != "read":
            continue
        name, at = x.args[0].args
        for mine, theirs in zip(at, reads.get(name, ()), strict=False):
            y = single(mine)
            if y is not None and y.kind == "var":
                found[y] = theirs
    return found


def _indices_in(p: Poly) -> Iterator[Poly]:
    """The indices that `p` is made of, whole and in digits."""
    for x in sorted(p.free, key=lambda y: y.id):
        if x.kind == "var":
            yield poly(x)
        elif x.kind == "div":
            yield poly(x)
            yield x.args[0] - poly(x) * x.args[1]
