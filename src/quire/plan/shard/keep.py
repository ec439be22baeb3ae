"""What to do with what each region keeps for backward: all ways worth taking.

Equal regions are one group; a group takes at most two of the four kinds, in every number of each.
Ways that another equals or beats in seconds, bytes of the device and bytes of the host are dropped.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

import attrs
import torch
from torch import Tensor

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
    one part, `extra` the seconds, once that is chosen. `parameters` are those that no one else
    reads, `passing` the bytes of their states that go between host and device in each pass."""

    module: str
    kept: int
    border: int
    seconds: float
    rowwise: int = 0
    edge: int = 0
    again: float = 0.0
    part: int = 0
    extra: float = 0.0
    parameters: int = 0
    passing: int = 0

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


def _one(region: Region, how: Keep) -> Row:
    still, sent = {
        "keep": (region.kept, 0),
        "recompute": (region.border, 0),
        "offload": (0, region.kept),
        "recompute, border offloaded": (0, region.border),
    }[how]
    # The states of a layer and what it keeps share the way to the host, once forward, once back.
    seconds = region.extra + 2 * _copy_seconds(sent + region.passing, region.seconds)
    if how.startswith("recompute"):
        seconds += region.seconds
    back = region.part if how == "keep" else region.kept + region.part
    return Row(seconds, still, back, sent, ((region, how),))


def _copy_seconds(nbytes: int, compute: float) -> float:
    """What copies add: they hide behind compute, but for a share that contends with it."""
    copy = nbytes / HOST_BANDWIDTH
    return max(CONTENTION * copy, copy - compute)


@attrs.frozen(eq=False)
class Choices:
    """Ways to treat all regions: `[n, 4]` seconds, bytes still there, bytes of the region backward
    is at, bytes on the host; and for each its way in every group of equal regions, `[n, g]`."""

    figures: Tensor
    picked: Tensor
    groups: tuple[tuple[Row, ...], ...]

    def fastest(self, room: float) -> Row | None:
        """The least seconds that hold at most `room` bytes; None if nothing does."""
        held = self.figures[:, 1] + self.figures[:, 2]
        seconds = torch.where(held <= room, self.figures[:, 0], math.inf)
        best = int(seconds.argmin())
        return self._row(best) if seconds[best] < math.inf else None

    def smallest(self) -> Row:
        """The one that holds least."""
        return self._row(int((self.figures[:, 1] + self.figures[:, 2]).argmin()))

    def _row(self, index: int) -> Row:
        found = Row()
        for ways, k in zip(self.groups, self.picked[index].tolist(), strict=True):
            found += ways[k]
        return found


def choices(regions: tuple[Region, ...], host: float) -> Choices:
    """The ways within `host` bytes of the host that may be best, whatever room there is."""
    alike: dict[Region, list[Region]] = {}
    for region in regions:
        alike.setdefault(attrs.evolve(region, module=""), []).append(region)
    kinds: tuple[Keep, ...] = ("keep", "recompute", "offload", "recompute, border offloaded")
    figures = torch.zeros(1, 4, dtype=torch.float64)
    picked = torch.zeros(1, 0, dtype=torch.int64)
    groups: list[tuple[Row, ...]] = []
    for number, members in enumerate(alike.values(), 1):
        ways = tuple(
            _some(members, first, a, b)
            for a, b in itertools.combinations(kinds, 2)
            for first in range(len(members) + 1)
        )
        groups.append(ways)
        own = torch.tensor(
            [[w.seconds, w.still, w.back, w.host] for w in ways], dtype=torch.float64
        )
        best = _unbeaten(own, host)
        both = figures[:, None] + own[best][None]
        both[..., 2] = torch.maximum(figures[:, None, 2], own[best][None, :, 2])
        index = torch.cartesian_prod(torch.arange(len(figures)), best)
        figures = both.flatten(0, 1)
        # The last product is only searched once: weeding it would take longer.
        last = number == len(alike)
        left = figures[:, 3] <= host if last else _unbeaten(figures, host)
        figures, index = figures[left], index[left]
        picked = torch.cat([picked[index[:, 0]], index[:, 1:]], 1)
    return Choices(figures, picked, tuple(groups))


def _some(members: list[Region], first: int, a: Keep, b: Keep) -> Row:
    """The first so many of equal regions one way, the others another: `Row.of` of them."""
    x, y = _one(members[0], a), _one(members[0], b)
    rest = len(members) - first
    return Row(
        first * x.seconds + rest * y.seconds,
        first * x.still + rest * y.still,
        max(x.back if first else 0, y.back if rest else 0),
        first * x.host + rest * y.host,
        tuple((r, a if i < first else b) for i, r in enumerate(members)),
    )


def _unbeaten(figures: Tensor, host: float) -> Tensor:
    """The rows that no other equals or beats in every column, by their place."""
    order = torch.arange(len(figures))[figures[:, 3] <= host]
    for column in (3, 2, 1, 0):
        order = order[figures[order, column].argsort(stable=True)]
    kept = order[:0]
    while len(order):
        # Sorted, so that a row is beaten only by ones before it; the first is not.
        head, order = order[:BLOCK], order[BLOCK:]
        own = (figures[head][None] <= figures[head][:, None]).all(-1).tril(-1).any(1)
        kept = torch.cat([kept, head[~own]])
        beaten = (figures[head[~own]][None] <= figures[order][:, None]).all(-1).any(1)
        order = order[~beaten]
    return kept


BLOCK = 256
"""Rows compared with all others at once."""
