"""Which element is written by which unit: found by going through all of them.

Sizes but lengths are known numbers, so that this is a finite check; a length appears as the whole
range of one dim of its own, or the check refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quire.verify.decide import Premises
from quire.verify.digits import Loop
from quire.verify.poly import Atom, Poly, single
from quire.verify.value import NotShown


class Wrong(NotShown):
    """A claim that is false, with the element, buffer or pointer that shows it."""


LIMIT = 1 << 25
"""Elements gone through at most in one check."""


def grid(loops: Sequence[Loop]) -> dict[Atom, Any]:
    """Every value of every loop's index, as arrays that broadcast against each other."""
    sizes = []
    for x, size in loops:
        if size.constant is None:
            raise NotShown(f"the loop over {x} runs {size} times, where a number is needed")
        sizes.append(size.constant)
    if np.prod([float(s) for s in sizes]) > LIMIT:
        raise NotShown("too many elements to go through")
    found = {}
    for k, ((x, _), n) in enumerate(zip(loops, sizes, strict=True)):
        shape = [1] * len(sizes)
        shape[k] = n
        found[x] = np.arange(n, dtype=np.int64).reshape(shape)
    return found


def values(p: Poly, env: Mapping[Atom, Any]) -> Any:
    """`p` over a grid. Raises NotShown where it depends on more than the grid."""
    total: Any = np.int64(0)
    for mono, c in p.terms:
        item: Any = np.int64(c)
        for x in mono:
            item = item * _atom(x, env)
        total = total + item
    return total


def _atom(x: Atom, env: Mapping[Atom, Any]) -> Any:
    if x in env:
        return env[x]
    if x.kind in ("div", "min", "max"):
        a, b = (values(p, env) for p in x.args)
        if x.kind == "div":
            return a // b
        return np.minimum(a, b) if x.kind == "min" else np.maximum(a, b)
    raise NotShown(f"{x} is not known when the source is written")


def holding(premises: Premises, env: Mapping[Atom, Any], shape: tuple[int, ...]) -> Any:
    """Where on a grid the premises hold; those that cannot be worked out are taken to."""
    found = np.ones(shape, dtype=bool)
    for relation, p in premises:
        try:
            x = values(p, env)
        except NotShown:
            continue
        found &= np.broadcast_to(x >= 0 if relation == ">=" else x == 0, shape)
    return found


def shape_of(env: Mapping[Atom, Any]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(v.shape for v in env.values())) if env else ()


def flat(at: Sequence[Poly], sizes: Sequence[int], env: Mapping[Atom, Any]) -> Any:
    """The row-major position of an index, over a grid."""
    total: Any = np.int64(0)
    for p, n in zip(at, sizes, strict=True):
        total = total * n + values(p, env)
    return np.broadcast_to(total, shape_of(env))


def whole_dims(at: Sequence[Poly], shape: Sequence[Poly], loops: Sequence[Loop]) -> set[int]:
    """Dims whose index is the index of one loop over the whole dim, used in no other dim (but in
    those whose index is data)."""
    sizes, data = dict(loops), data_dims(at)
    found = set()
    for d, p in enumerate(at):
        x = single(p)
        if x is None or sizes.get(x) is not shape[d]:
            continue
        if all(x not in q.free for e, q in enumerate(at) if e != d and e not in data):
            found.add(d)
    return found


def data_dims(at: Sequence[Poly]) -> set[int]:
    """Dims whose index is read from a tensor."""
    return {d for d, p in enumerate(at) if any(x.kind == "val" for x in p.free)}


def once(places: Sequence[Any], count: int, whole: bool = True) -> str:
    """Why the places are not each of `count` elements once; empty if they are. Without `whole`
    there may be elements at no place."""
    every = np.concatenate([p.reshape(-1) for p in places]) if places else np.zeros(0, np.int64)
    if len(every) and (every.min() < 0 or every.max() >= count):
        return f"element {int(every.max())} of {count} is written"
    times = np.bincount(every, minlength=count)
    wrong = times != 1 if whole else times > 1
    if not wrong.any():
        return ""
    k = int(np.flatnonzero(wrong)[0])
    return f"element {k} of {count} is written {int(times[k])} times"
