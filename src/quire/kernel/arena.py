"""Where intermediates live: buffers that are never live together share bytes.

Shared buffers are live from the phase that writes them to the last that reads them, private ones
within their phase. Offsets are for the largest lengths, chosen first-fit with the largest buffer
first, which on the programs tested stays within 1.1 of the liveness bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import sympy

from quire.kernel.ir import Buffer, Size, reads
from quire.kernel.schedule import Phase

ALIGN = 64


@attrs.frozen
class Arena:
    """Byte offsets by buffer name; `size` bytes in all, at least `bound` are needed."""

    offsets: Mapping[str, int]
    size: int
    bound: int


@attrs.frozen
class Live:
    """A buffer of `size` bytes, in use from phase `first` to phase `last`."""

    name: str
    size: int
    first: int
    last: int


def plan_arena(phases: Sequence[Phase], most: Mapping[sympy.Symbol, int]) -> Arena:
    """Places for the shared intermediates of all phases."""
    return _pack(lives(phases, most))


def lives(phases: Sequence[Phase], most: Mapping[sympy.Symbol, int]) -> list[Live]:
    """When each shared intermediate is in use."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for k, phase in enumerate(phases):
        for nest in phase.nests:
            for b in (*nest.outs, *(r.buffer for r in reads(nest))):
                if b.role == "temp":
                    first.setdefault(b, k)
                    last[b] = k
    return [Live(b.name, nbytes(b, most), first[b], last[b]) for b in first]


def scratch_offsets(
    phase: Phase, most: Mapping[sympy.Symbol, int]
) -> tuple[Mapping[str, int], int]:
    """Places for a phase's private buffers within each worker's scratch."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for k, nest in enumerate(phase.nests):
        for b in (*nest.outs, *(r.buffer for r in reads(nest))):
            if b.role == "private":
                first.setdefault(b, k)
                shared = k >= len(phase.private)
                last[b] = len(phase.nests) if shared else max(k, last.get(b, 0))
    # In order of appearance, so that equal phases get equal offsets.
    arena = _pack([Live(b.name, nbytes(b, most), first[b], last[b]) for b in first], by_size=False)
    return arena.offsets, arena.size


def nbytes(b: Buffer, most: Mapping[sympy.Symbol, int]) -> int:
    total: Size = b.dtype.itemsize
    for size in b.shape:
        total = total * size
    count = total if isinstance(total, int) else int(total.xreplace(dict(most)))  # type: ignore[arg-type]
    return -(-count // ALIGN) * ALIGN


def _pack(lives: Sequence[Live], *, by_size: bool = True) -> Arena:
    order = sorted(lives, key=lambda v: (-v.size, v.first)) if by_size else list(lives)
    placed: list[tuple[int, Live]] = []
    offsets: dict[str, int] = {}
    for live in order:
        rivals = sorted(
            (at, at + v.size) for at, v in placed if v.first <= live.last and live.first <= v.last
        )
        spot = 0
        for low, high in rivals:
            if low - spot >= live.size:
                break
            spot = max(spot, high)
        offsets[live.name] = spot
        placed.append((spot, live))
    size = max((at + v.size for at, v in placed), default=0)
    moments = {v.first for v in lives}
    bound = max((sum(v.size for v in lives if v.first <= m <= v.last) for m in moments), default=0)
    return Arena(offsets, size, bound)
