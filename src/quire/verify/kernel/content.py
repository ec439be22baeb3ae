"""What was written, as a tensor: places decoded, indices inverted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from quire.verify import term as t
from quire.verify.decide import Premises, divmod_, prove
from quire.verify.digits import Loop
from quire.verify.kernel.cover import data_dims, whole_dims
from quire.verify.poly import ONE, ZERO, Atom, Poly, index, poly, single
from quire.verify.poly import substitute as substitute_poly
from quire.verify.value import NotShown


@attrs.frozen(eq=False)
class Attended:
    """What `q.attend` leaves, joined: `scalar` over the canonical indices of the rows and of the
    width, from the keys lo ≤ j < hi in blocks of `block`."""

    shape: tuple[Poly, ...]
    lo: Any
    hi: Any
    block: int
    width: Poly
    scalar: Any


def dense(shape: Sequence[Poly]) -> tuple[Poly, ...]:
    """Strides of a row-major tensor."""
    found: list[Poly] = []
    step = ONE
    for size in reversed(shape):
        found.insert(0, step)
        step = step * size
    return tuple(found)


def decode(
    at: Poly, shape: Sequence[Poly], strides: Sequence[Poly], path: Premises, what: str,
    assumed: Callable[[Poly], Premises] = lambda _: (),
) -> list[Poly]:  # fmt: skip
    """The index of the element at position `at`, shown to lie within the shape. `assumed` gives
    what is known of an index that is data."""
    order = [d for d in range(len(shape)) if shape[d] is not ONE]
    if all(strides[d].constant is not None for d in order):
        order.sort(key=lambda d: -(strides[d].constant or 0))
    found = [ZERO] * len(shape)
    rest = at
    for d in order:
        if strides[d] is ONE:
            found[d], rest = rest, ZERO
        else:
            found[d], rest = divmod_(rest, strides[d], path)
    if rest is not ZERO:
        raise NotShown(f"{what}: position {at} is none of an element")
    for d in order:
        ends = (found[d], "bounds: not before the start"), (
            shape[d] - 1 - found[d], "bounds: not after the end",
        )  # fmt: skip
        if not (
            all(prove(p, ">=", path, why) for p, why in ends)
            or all(prove(p, ">=", (*path, *assumed(found[d])), why) for p, why in ends)
        ):
            raise NotShown(f"{what}: index {found[d]} of dim {d} is not within {shape[d]}")
    return found


def inverse(
    at: Sequence[Poly], shape: Sequence[Poly], loops: Sequence[Loop]
) -> dict[Atom, Poly] | None:
    """Each loop's index as a function of the canonical index of what is written; None if that is
    not found. A dim is the range of one loop, or of several as digits of a number."""
    found: dict[Atom, Poly] = {}
    whole = whole_dims(at, shape, loops)
    left = dict(loops)
    for d, p in enumerate(at):
        if d in whole:
            x = single(p)
            assert x is not None
            found[x] = index(d, shape[d])
            left.pop(x, None)
        elif shape[d] is not ONE:
            own = _digits_of(p, left)
            if own is None or product_of(own) is not shape[d]:
                return None
            for x, size, step in own:
                quotient = divmod_(index(d, shape[d]), step)[0]
                found[x] = divmod_(quotient, size)[1]
                left.pop(x)
    return None if left else found


def image(
    at: Sequence[Poly], shape: Sequence[Poly], loops: Sequence[Loop]
) -> tuple[Any, dict[Atom, Poly]] | None:
    """Of a statement that writes at `at`: the condition on the canonical index under which an
    element is written, and each loop's index as a function of it. None if that is not found: a dim
    is a constant, data, or one loop's index moved by a constant."""
    sizes, found, held = dict(loops), {}, []
    for d, p in enumerate(at):
        own = [x for x in p.atoms() if x in sizes]
        if shape[d] is ONE or not own or d in data_dims(at):
            continue
        (x, *more), parts = own, p.split(own[0])
        if more or parts is None or parts[0] is not ONE or x in found:
            return None
        i = index(d, shape[d]) - parts[1]
        found[x] = i
        held += [t.ge(i), t.ge(sizes[x] - 1 - i)]
    if found.keys() != sizes.keys():
        return None
    for d, p in enumerate(at):
        if shape[d] is not ONE and not any(x in found for x in p.atoms()):
            held.append(t.eq(index(d, shape[d]) - substitute_poly(p, found)))
    return t.and_(*held), found


def _digits_of(p: Poly, loops: dict[Atom, Poly]) -> list[tuple[Atom, Poly, Poly]] | None:
    """`p` as a number written in loops' indices as digits: (index, size, step), smallest first."""
    parts = {}
    for x in p.atoms():
        split = p.split(x)
        if x not in loops or split is None:
            return None
        parts[x] = split[0]
        if any(y in split[0].free for y in loops):
            return None
    total = ZERO
    for x, step in parts.items():
        total = total + poly(x) * step
    if total is not p:
        return None
    found = []
    step = ONE
    while parts:
        x = next((y for y, s in parts.items() if s is step), None)
        if x is None:
            return None
        found.append((x, loops[x], step))
        step = step * loops[x]
        del parts[x]
    return found


def product_of(digits_: Sequence[tuple[Atom, Poly, Poly]]) -> Poly:
    total = ONE
    for _, size, _ in digits_:
        total = total * size
    return total


def laid_out(at: Poly, loops: Sequence[Loop]) -> tuple[tuple[Poly, ...], list[Poly]]:
    """The shape of a row-major tensor that is written at `at`, and the index in it. Raises
    NotShown if there is none."""
    found = _digits_of(at, dict(loops))
    if found is None or len(found) != len(loops):
        raise NotShown(f"scratch is written at {at}, which is no row-major order")
    found.reverse()
    return tuple(size for _, size, _ in found), [poly(x) for x, _, _ in found]


def guards(j: Poly, lo: Poly, hi: Poly) -> Any:
    """lo ≤ j < hi, each bound of a maximum or minimum as a condition of its own."""
    return t.and_(*_least(j, lo), *_below(j, hi))


def _least(j: Poly, lo: Poly) -> list[Any]:
    x = single(lo)
    if x is not None and x.kind == "max":
        return [c for a in x.args for c in _least(j, a)]
    return [t.ge(j - lo)]


def _below(j: Poly, hi: Poly) -> list[Any]:
    x = single(hi)
    if x is not None and x.kind == "min":
        return [c for a in x.args for c in _below(j, a)]
    return [t.ge(hi - 1 - j)]
