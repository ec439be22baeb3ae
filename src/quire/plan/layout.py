"""How a sequence lies on the ranks of a mesh dim: frozen data, shared by planner and runtime.

A *run* is a stretch of rows that is contiguous both on the rank and in the sequence. With
`ring = R` of P ranks the sequence is cut into 2R blocks; ring member i holds the blocks i and
2R−1−i (zigzag, so that causal work is even) and shares them among its P/R ranks. R = 1 is the
plain order: rank r holds rows r·s … (r+1)·s.

The sequence is padded at its end to whole blocks; rows past `size` are in no run.
"""

from __future__ import annotations

import attrs

Run = tuple[int, int, int]
"""Start on the rank, start in the sequence, length."""


@attrs.frozen
class Layout:
    """`size` rows over `ranks` ranks, zigzag over `ring` of them."""

    size: int
    ranks: int
    ring: int = 1

    def __attrs_post_init__(self) -> None:
        if self.ranks % self.ring:
            raise ValueError(f"a ring of {self.ring} does not divide {self.ranks} ranks")

    @property
    def block(self) -> int:
        """Rows of one of the 2R blocks: whole, and such that P/R ranks share two evenly."""
        if self.ring == 1:
            return self.local * self.ranks
        blocks, share = 2 * self.ring, self.ranks // self.ring
        rows = -(-self.size // blocks)
        step = share if share % 2 else share // 2
        return -(-rows // step) * step

    @property
    def local(self) -> int:
        """Rows on each rank, padding included."""
        if self.ring == 1:
            return -(-self.size // self.ranks)
        return 2 * self.block // (self.ranks // self.ring)

    @property
    def padded(self) -> int:
        return self.local * self.ranks

    def runs(self, rank: int) -> tuple[Run, ...]:
        """The rows of `rank` that belong to the sequence, in order of place."""
        if self.ring == 1:
            return self._cut([(0, rank * self.local, self.local)])
        share = self.ranks // self.ring
        member, place = divmod(rank, share)
        return self._part(self._member(member), place * self.local, self.local)

    def pieces(self, first: int, count: int) -> tuple[Run, ...]:
        """The runs of ranks `first … first + count` laid end to end."""
        found: list[Run] = []
        for k in range(count):
            runs = self.runs(first + k)
            found += [(k * self.local + at, start, length) for at, start, length in runs]
        return tuple(_joined(found))

    def _member(self, member: int) -> list[Run]:
        c = self.block
        return [(0, member * c, c), (c, (2 * self.ring - 1 - member) * c, c)]

    def _part(self, runs: list[Run], first: int, count: int) -> tuple[Run, ...]:
        found = []
        for at, start, length in runs:
            lo, hi = max(at, first), min(at + length, first + count)
            if lo < hi:
                found.append((lo - first, start + lo - at, hi - lo))
        return self._cut(found)

    def _cut(self, runs: list[Run]) -> tuple[Run, ...]:
        kept = [(at, start, min(length, self.size - start)) for at, start, length in runs]
        return tuple(run for run in kept if run[2] > 0)

    def natural(self) -> tuple[Run, ...]:
        """All rows: (place among the ranks' rows laid end to end, start, length), by start."""
        return tuple(sorted(self.pieces(0, self.ranks), key=lambda run: run[1]))


def local_rows(size: int, ranks: int, ring: int) -> int:
    """Rows on each rank, padding included."""
    return Layout(size, ranks, ring).local


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbours that continue one another as one run."""
    out: list[Run] = []
    for at, start, length in runs:
        if out and out[-1][0] + out[-1][2] == at and out[-1][1] + out[-1][2] == start:
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + length)
        else:
            out.append((at, start, length))
    return out
