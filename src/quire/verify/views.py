"""Views as maps of indices: slices, permutations, expansions, reshapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from quire.verify import term as t
from quire.verify.decide import divmod_, prove
from quire.verify.poly import ONE, ZERO, Poly, poly, product
from quire.verify.term import Term
from quire.verify.value import Index, NoMeaning, Shape, Value, build, require, same_size, spread


@attrs.frozen(eq=False)
class View:
    """A map of indices. `forward` takes an index of the view to one of what is viewed, `back` the
    other way with the condition under which there is one (None: nothing can be written through
    it). Views of equal `key` of one tensor are one view."""

    shape: Shape
    forward: Callable[[Index], list[Poly]]
    back: Callable[[Index], tuple[Term, list[Poly]]] | None
    key: tuple[Any, ...]


def dim_in(ndim: int, dim: int) -> int:
    """`dim`, counted from the front. Raises NoMeaning where torch raises IndexError."""
    if not -ndim <= dim < ndim:
        raise NoMeaning(f"dim {dim} of {ndim}")
    return dim % ndim


def narrow(shape: Shape, dim: int, lo: Any, length: Any) -> View:
    lo, length = poly(lo), poly(length)
    size = shape[dim]
    require(prove(lo, why="bounds: start of a slice"), f"slice from {lo} starts before 0")
    require(prove(length, why="bounds: length of a slice"), f"slice of negative length {length}")
    require(
        prove(size - lo - length, why="bounds: end of a slice"),
        f"slice [{lo}, {lo + length}) leaves a dim of size {size}",
    )
    new = (*shape[:dim], length, *shape[dim + 1 :])

    def forward(idx: Index) -> list[Poly]:
        return [*idx[:dim], idx[dim] + lo, *idx[dim + 1 :]]

    def back(idx: Index) -> tuple[Term, list[Poly]]:
        i = idx[dim] - lo
        return t.and_(t.ge(i), t.ge(length - 1 - i)), [*idx[:dim], i, *idx[dim + 1 :]]

    return View(new, forward, back, ("narrow", dim, lo, length))


def strided(shape: Shape, dim: int, lo: Poly, length: Poly, step: int) -> View:
    """Every `step`-th index of `dim` from `lo`."""
    if step == 1:
        return narrow(shape, dim, lo, length)
    new = (*shape[:dim], length, *shape[dim + 1 :])

    def forward(idx: Index) -> list[Poly]:
        return [*idx[:dim], idx[dim] * step + lo, *idx[dim + 1 :]]

    return View(new, forward, None, ("strided", dim, lo, length, step))


def permute(shape: Shape, order: Sequence[int]) -> View:
    order = [dim_in(len(shape), d) for d in order]
    if sorted(order) != list(range(len(shape))):
        raise NoMeaning(f"a permutation of {len(shape)} dims to {order}")

    def forward(idx: Index) -> list[Poly]:
        out = [ZERO] * len(order)
        for i, d in zip(idx, order, strict=True):
            out[d] = i
        return out

    def back(idx: Index) -> tuple[Term, list[Poly]]:
        return t.TRUE, [idx[d] for d in order]

    return View(tuple(shape[d] for d in order), forward, back, ("permute", *order))


def select(shape: Shape, dim: int, at: Poly) -> View:
    size = shape[dim]
    if at.constant is not None and at.constant < 0:
        at = at + size
    require(prove(at, why="bounds: select"), f"select at {at}")
    require(prove(size - 1 - at, why="bounds: select"), f"select at {at} of {size}")

    def forward(idx: Index) -> list[Poly]:
        return [*idx[:dim], at, *idx[dim:]]

    def back(idx: Index) -> tuple[Term, list[Poly]]:
        return t.eq(idx[dim] - at), [*idx[:dim], *idx[dim + 1 :]]

    return View((*shape[:dim], *shape[dim + 1 :]), forward, back, ("select", dim, at))


def insert(shape: Shape, dim: int) -> View:
    def back(idx: Index) -> tuple[Term, list[Poly]]:
        return t.TRUE, [*idx[:dim], ZERO, *idx[dim:]]

    return View(
        (*shape[:dim], ONE, *shape[dim:]),
        lambda idx: [*idx[:dim], *idx[dim + 1 :]],
        back,
        ("insert", dim),
    )


def expand(shape: Shape, sizes: Sequence[Any]) -> View:
    lead = len(sizes) - len(shape)
    new: list[Poly] = []
    for k, size in enumerate(sizes):
        own = shape[k - lead] if k >= lead else ONE
        size = own if isinstance(size, int) and size == -1 else poly(size)
        if own is not ONE:
            require(same_size(own, size, "expand"), f"expand of size {own} to {size}")
        new.append(size if own is ONE else own)
    shapes = tuple(new)

    def forward(idx: Index) -> list[Poly]:
        return spread(idx, shape)

    return View(shapes, forward, None, ("expand", *shapes))


def resolved(shape: Shape, sizes: Sequence[Any]) -> Shape:
    """`sizes` of a reshape with a −1 filled in."""
    total = product(shape)
    if any(isinstance(s, int) and s == -1 for s in sizes):
        known = product(poly(s) for s in sizes if not (isinstance(s, int) and s == -1))
        rest, left = divmod_(total, known)
        require(left is ZERO, f"{total} elements in rows of {known}")
        return tuple(rest if isinstance(s, int) and s == -1 else poly(s) for s in sizes)
    new = tuple(poly(s) for s in sizes)
    require(
        same_size(product(new), total, "reshape keeps the elements"),
        f"reshape of {total} elements to {product(new)}",
    )
    return new


def reshape(shape: Shape, sizes: Sequence[Any]) -> View:
    new = resolved(shape, sizes)
    groups = _groups(shape, new)

    def forward(idx: Index) -> list[Poly]:
        out: list[Poly] = []
        for source, target in groups:
            out += _unflatten(_flatten([idx[k] for k in target], [new[k] for k in target]),
                              [shape[k] for k in source])  # fmt: skip
        return out

    def back(idx: Index) -> tuple[Term, list[Poly]]:
        out: list[Poly] = []
        for source, target in groups:
            out += _unflatten(_flatten([idx[k] for k in source], [shape[k] for k in source]),
                              [new[k] for k in target])  # fmt: skip
        return t.TRUE, out

    return View(new, forward, back, ("reshape", shape, new))


def _groups(a: Shape, b: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of dims of both shapes that hold as many elements."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left, right = [i] if i < len(a) else [], [j] if j < len(b) else []
        i, j = i + len(left), j + len(right)
        if left and a[left[0]] is ONE and not (right and b[right[0]] is ONE):
            j -= len(right)
            groups.append((left, []))
            continue
        if right and b[right[0]] is ONE and not (left and a[left[0]] is ONE):
            i -= len(left)
            groups.append(([], right))
            continue
        while (p := product(a[k] for k in left)) is not (q := product(b[k] for k in right)):
            grow_left = i < len(a) and (j >= len(b) or not _ends(q, p))
            if grow_left:
                left.append(i)
                i += 1
            elif j < len(b):
                right.append(j)
                j += 1
            else:
                break
        groups.append((left, right))
    return groups


def _ends(q: Poly, p: Poly) -> bool:
    """Whether the next dim is to be taken from q's side: p is larger."""
    x, y = q.constant, p.constant
    if x is not None and y is not None:
        return x < y
    return prove(p - q) and not prove(q - p)


def _flatten(idx: Sequence[Poly], sizes: Sequence[Poly]) -> Poly:
    flat = ZERO
    for i, size in zip(idx, sizes, strict=True):
        flat = flat * size + i
    return flat


def _unflatten(flat: Poly, sizes: Sequence[Poly]) -> list[Poly]:
    out: list[Poly] = []
    for k in reversed(range(len(sizes))):
        if sizes[k] is ONE:
            out.append(ZERO)
        elif all(s is ONE for s in sizes[:k]):
            out.append(flat)
            flat = ZERO
        else:
            flat, i = divmod_(flat, sizes[k])
            out.append(i)
    return out[::-1]


def through(value: Value, view: View) -> Value:
    """`value` seen through a view."""
    return build(view.shape, value.dtype, lambda idx: value.at(view.forward(idx)))
