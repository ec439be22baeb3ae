"""Components of elements described in closed form: units of equal form, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from quire.kernel.ir import AnyNest, Var


@attrs.frozen
class Share:
    """One nest's elements in a segment. `axes` are the dims they are counted over, row-major;
    the nest's other axes are run through whole in every unit."""

    nest: AnyNest
    axes: tuple[Var, ...]
    base: int
    outer_step: int
    inner_step: int
    offsets: tuple[int, ...]


@attrs.frozen
class Segment:
    """`outer` × `inner` units of equal form; `cost` is the work of one."""

    outer: int
    inner: int
    cost: int
    shares: tuple[Share, ...]


@attrs.define
class Member:
    nest: AnyNest
    axes: tuple[Var, ...]
    labels: Any


def cost(nest: AnyNest, axes: Sequence[Var]) -> int:
    """Work per element of `axes`, in multiply-adds or the like, for one row of a batch."""
    inner = 1
    rest = [a for a in nest.axes if a not in axes]
    over = getattr(nest, "over", ())
    for v in (*rest, *(over if isinstance(over, tuple) else (over,))):
        inner *= v.size if isinstance(v.size, int) else 1
    return max(1, inner)


def segments_of(members: list[Member], ids: list[Any], group: Any, counts: Any) -> list[Segment]:
    """The units `group`, each with `counts[m]` elements of member m, as segments."""
    present = [k for k, n in enumerate(counts) if n]
    place = np.full(int(max(i.max(initial=-1) for i in ids)) + 1, -1)
    place[group] = np.arange(len(group))
    tables = []
    for k in present:
        mine = np.flatnonzero(place[ids[k]] >= 0)
        order = np.lexsort((mine, place[ids[k][mine]]))
        tables.append(mine[order].reshape(len(group), int(counts[k])))
    bases = np.stack([t[:, 0] for t in tables], axis=1)
    forms = np.concatenate([t - t[:, :1] for t in tables], axis=1)
    _, form = np.unique(forms, axis=0, return_inverse=True)
    form = form.reshape(-1)
    found: list[Segment] = []
    for f in range(form.max() + 1):
        rows = np.flatnonzero(form == f)
        rows = rows[np.argsort(bases[rows, 0], kind="stable")]
        offsets = [tuple(int(v) for v in t[rows[0]] - t[rows[0], 0]) for t in tables]
        for first, outer, inner, big, small in _runs(bases[rows]):
            shares = tuple(
                Share(
                    members[k].nest,
                    members[k].axes,
                    int(first[n]),
                    int(big[n]),
                    int(small[n]),
                    offsets[n],
                )
                for n, k in enumerate(present)
            )
            work = sum(len(s.offsets) * cost(s.nest, s.axes) for s in shares)
            found.append(Segment(outer, inner, work, shares))
    return found


def _runs(bases: Any) -> list[tuple[Any, int, int, Any, Any]]:
    """Rows of bases as `first + o·big + r·small`, in as few pieces as a greedy walk finds."""
    found: list[tuple[Any, int, int, Any, Any]] = []
    n, width = bases.shape
    zero = np.zeros(width, dtype=np.int64)
    steps = np.diff(bases, axis=0)
    start = 0
    while start < n:
        inner = 1
        small = zero
        if start + 1 < n:
            small = steps[start]
            while start + inner < n and (steps[start + inner - 1] == small).all():
                inner += 1
        outer, big = 1, zero
        after = start + inner
        if after + inner <= n:
            big = bases[after] - bases[start]
            block = bases[start : start + inner]
            while (
                start + (outer + 1) * inner <= n
                and (
                    bases[start + outer * inner : start + (outer + 1) * inner]
                    == block + outer * big
                ).all()
            ):
                outer += 1
        if outer == 1:
            big = zero
        found.append((bases[start], outer, inner, big, small))
        start += outer * inner
    return found
