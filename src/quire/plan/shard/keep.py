"""What to do with what each region keeps for backward: all ways worth taking.

Equal regions are one group; a group takes at most two of the four kinds, in every number of each.
The largest takes three: with a limit of the device and one of the host the best may need as many.
Ways that another equals or beats in seconds, bytes of the device and bytes of the host are dropped.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Literal

import attrs
import torch
from torch import Tensor

Keep = Literal["keep", "recompute", "offload", "recompute with borders offloaded"]

KINDS: tuple[Keep, ...] = ("keep", "recompute", "offload", "recompute with borders offloaded")

MOST = 1 << 20
"""Choices searched at once, beyond which the largest group takes at most two kinds as well."""

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
        "recompute with borders offloaded": (0, region.border),
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
    is at, bytes on the host; and for each its row of counts in every group of equal regions,
    `[n, g]`."""

    figures: Tensor
    picked: Tensor
    groups: tuple[tuple[tuple[Region, ...], Tensor], ...]

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
        hows: list[tuple[Region, Keep]] = []
        for (members, counts), k in zip(self.groups, self.picked[index].tolist(), strict=True):
            kinds: list[Keep] = [
                how for how, n in zip(KINDS, counts[k].tolist(), strict=True) for _ in range(n)
            ]
            hows.extend(zip(members, kinds, strict=True))
        return Row.of(tuple(hows))


def choices(regions: tuple[Region, ...], host: float) -> Choices:
    """The ways within `host` bytes of the host that may be best, whatever room there is."""
    alike: dict[Region, list[Region]] = {}
    for region in regions:
        alike.setdefault(attrs.evolve(region, module=""), []).append(region)
    figures = torch.zeros(1, 4, dtype=torch.float64)
    picked = torch.zeros(1, 0, dtype=torch.int64)
    groups: list[tuple[tuple[Region, ...], Tensor]] = []
    for members in sorted(alike.values(), key=len):
        # The last product is only searched once: weeding it would take longer.
        last = len(groups) == len(alike) - 1
        counts = _counts(len(members), 3 if last else 2)
        if last and len(counts) * len(figures) > MOST:
            counts = _counts(len(members), 2)
        groups.append((tuple(members), counts))
        own = _figures(members[0], counts)
        best = own[:, 3].le(host).nonzero()[:, 0] if last else _unbeaten(own, host)
        both = figures[:, None] + own[best][None]
        both[..., 2] = torch.maximum(figures[:, None, 2], own[best][None, :, 2])
        index = torch.cartesian_prod(torch.arange(len(figures)), best)
        figures = both.flatten(0, 1)
        left = figures[:, 3] <= host if last else _unbeaten(figures, host)
        figures, index = figures[left], index[left]
        picked = torch.cat([picked[index[:, 0]], index[:, 1:]], 1)
    return Choices(figures, picked, tuple(groups))


@cache
def _counts(regions: int, most: int) -> Tensor:
    """How many of so many equal regions go each of the four ways, at most `most` of them at once:
    `[n, 4]`, more that are kept first."""
    found: set[tuple[int, ...]] = set()
    for kinds in itertools.combinations(range(len(KINDS)), most):
        for bars in itertools.combinations(range(regions + most - 1), most - 1):
            ends = (-1, *bars, regions + most - 1)
            row = [0] * len(KINDS)
            for kind, (a, b) in zip(kinds, itertools.pairwise(ends), strict=True):
                row[kind] = b - a - 1
            found.add(tuple(row))
    return torch.tensor(sorted(found, reverse=True))


def _figures(region: Region, counts: Tensor) -> Tensor:
    """Of each row of `counts`, what `Row.of` such regions says: `[n, 4]`."""
    rows = [_one(region, how) for how in KINDS]
    each = torch.tensor([[r.seconds, r.still, r.back, r.host] for r in rows], dtype=torch.float64)
    found = counts.double() @ each
    found[:, 2] = (counts.gt(0) * each[:, 2]).amax(1)
    return found


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
