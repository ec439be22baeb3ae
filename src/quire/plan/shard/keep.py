"""What to do with what each region keeps for backward: all ways worth taking.

Equal regions are one group; a group takes at most two of the four kinds, in every number of each.
Ways that another beats in seconds, bytes of the device and bytes of the host are dropped.
"""

from __future__ import annotations

import itertools
from typing import Literal

import attrs

Keep = Literal["keep", "recompute", "offload", "recompute, border offloaded"]

HOST_BANDWIDTH = 25e9
"""Bytes/s between device and host, one direction (PCIe 4 ×16, pinned)."""

CONTENTION = 0.05
"""Share of a copy's time that the compute it hides behind loses."""


@attrs.frozen
class Region:
    """Bytes kept for backward and at its border, seconds of its forward. `rowwise` bytes of what is
    kept are made by ops that treat each row by itself: in parts of the rows they are made again in
    backward, a part at a time, from `edge` bytes more, in `again` seconds. `part` are the bytes of
    one part, `extra` the seconds, once that is chosen."""

    module: str
    kept: int
    border: int
    seconds: float
    rowwise: int = 0
    edge: int = 0
    again: float = 0.0
    part: int = 0
    extra: float = 0.0

    def in_parts(self, parts: int) -> Region:
        """The region with its ops on rows run in `parts` parts."""
        if parts == 1 or not self.rowwise:
            return self
        return attrs.evolve(
            self,
            kept=self.kept - self.rowwise + self.edge,
            rowwise=0,
            edge=0,
            part=-(-self.rowwise // parts),
            extra=self.again,
        )


@attrs.frozen
class Row:
    """Seconds added, bytes on the device between forward and backward, the bytes of the region
    that backward is at if it was computed again or fetched, bytes on the host, and who does what.
    """

    seconds: float = 0.0
    still: int = 0
    back: int = 0
    host: int = 0
    hows: tuple[tuple[Region, Keep], ...] = ()

    @property
    def held(self) -> int:
        return self.still + self.back

    @staticmethod
    def of(hows: tuple[tuple[Region, Keep], ...]) -> Row:
        row = Row()
        for region, how in hows:
            row += _one(region, how)
        return row

    def __add__(self, other: Row) -> Row:
        return Row(
            self.seconds + other.seconds,
            self.still + other.still,
            max(self.back, other.back),
            self.host + other.host,
            (*self.hows, *other.hows),
        )

    def beats(self, other: Row) -> bool:
        return (
            self.seconds <= other.seconds
            and self.still <= other.still
            and self.back <= other.back
            and self.host <= other.host
        )


def _one(region: Region, how: Keep) -> Row:
    hows: tuple[tuple[Region, Keep], ...] = ((region, how),)
    extra, back = region.extra, region.kept + region.part
    if how == "keep":
        return Row(extra, region.kept, region.part, 0, hows)
    if how == "recompute":
        return Row(region.seconds + extra, region.border, back, 0, hows)
    if how == "offload":
        seconds = 2 * _copy_seconds(region.kept, region.seconds) + extra
        return Row(seconds, 0, back, region.kept, hows)
    seconds = region.seconds + 2 * _copy_seconds(region.border, region.seconds) + extra
    return Row(seconds, 0, back, region.border, hows)


def _copy_seconds(nbytes: int, compute: float) -> float:
    """What copies add: they hide behind compute, but for a share that contends with it."""
    copy = nbytes / HOST_BANDWIDTH
    return max(CONTENTION * copy, copy - compute)


def choices(regions: tuple[Region, ...], host: float) -> list[Row]:
    """The ways that no other beats and that keep within `host` bytes of the host."""
    groups: dict[Region, list[Region]] = {}
    for region in regions:
        groups.setdefault(attrs.evolve(region, module=""), []).append(region)
    kinds: tuple[Keep, ...] = ("keep", "recompute", "offload", "recompute, border offloaded")
    best = [Row()]
    for members in groups.values():
        ways = [
            Row.of(tuple((r, a if i < first else b) for i, r in enumerate(members)))
            for a, b in itertools.combinations(kinds, 2)
            for first in range(len(members) + 1)
        ]
        ways = _frontier([w for w in ways if w.host <= host])
        both = [a + b for a in best for b in ways]
        best = _frontier([row for row in both if row.host <= host])
    return best


def _frontier(rows: list[Row]) -> list[Row]:
    found: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.seconds, r.still, r.back, r.host)):
        if not any(other.beats(row) for other in found):
            found.append(row)
    return found
