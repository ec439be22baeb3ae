"""What a unit reads of its own phase, the same unit wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from quire.verify.kernel import cover
from quire.verify.kernel.phase import Event, Loop
from quire.verify.kernel.state import Key, Read, State
from quire.verify.poly import Poly
from quire.verify.value import NotShown


@attrs.frozen(eq=False)
class Store:
    """One event worked out, over its loops split into digits; `unit` numbers who does it."""

    event: Event
    at: list[Poly]
    loops: tuple[Loop, ...]
    value: Any
    unit: Poly | None


def check_units(state: State, reads: Iterable[Read], stores: Mapping[Key, Sequence[Store]]) -> None:
    """Every element read in the epoch that writes it was written by the same unit. Raises Wrong."""
    for read in reads:
        if read.key in stores and read.key[0] != "scratch":
            _check(state, read, stores[read.key])


def _check(state: State, read: Read, stores: Sequence[Store]) -> None:
    unit, name, shape = read.event.unit, state.name(read.key), state.shape(read.key)
    mine = [s for s in stores if s.event.unit and s.event.unit.segment == unit.segment]
    whole = set.intersection(*(_all_by_one(s, shape) for s in mine))
    rest = [d for d in range(len(shape)) if d not in whole]
    sizes = [_number(shape[d], name) for d in rest]
    owner = np.full(int(np.prod(sizes)) if sizes else 1, -1, dtype=np.int64)
    for s in mine:
        assert s.unit is not None
        needed = {x for d in rest for x in s.at[d].free} | s.unit.free
        env = cover.grid([(x, n) for x, n in s.loops if x in needed])
        at = cover.flat([s.at[d] for d in rest], sizes, env)
        owner[at] = np.broadcast_to(cover.values(s.unit, env), at.shape)
    idx = [read.at[d] for d in rest]
    needed = {x for p in idx for x in p.free} | unit.index.free
    env = cover.grid([(x, n) for x, n in (*read.event.loops, *read.bound) if x in needed])
    at = cover.flat(idx, sizes, env)
    taken = cover.holding(read.path, env, at.shape)
    by = np.broadcast_to(cover.values(unit.index, env), at.shape)
    inside = taken & (at >= 0) & (at < len(owner))
    if (taken & ~inside).any() or (owner[at[inside]] != by[inside]).any():
        raise cover.Wrong(f"{name} is read by a worker other than the one that writes it")
    state.claim("order", f"{name}: read by the unit that wrote it")


def _all_by_one(store: Store, shape: Any) -> set[int]:
    """Dims that every unit goes through as a whole."""
    assert store.unit is not None
    whole = cover.whole_dims(store.at, shape, store.loops)
    return {d for d in whole if not store.at[d].free & store.unit.free}


def _number(size: Poly, name: str) -> int:
    found = size.constant
    if found is None:
        raise NotShown(f"{name}: a dim of size {size} is shared out between units")
    return found
