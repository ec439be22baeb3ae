"""Published times of sharded attention beside the planner's model of them.

Source: README of zhuzilin/ring-flash-attention at 01c8baf, and its benchmark folder: attention of
Llama 3.1 8 B (32 heads of 128, 8 of keys), causal, bf16, 8 K tokens a GPU, 8 GPUs. Iterations a
second of a way, and of flash attention on one GPU with an eighth of the work (as printed there,
already divided by 8). One number of the model is fitted, MERGE_BYTES, to the points marked so.
"""

from __future__ import annotations

from itertools import pairwise

import attrs

from quire.cost.collectives import TOPOLOGIES, Topology
from quire.plan.shard.cost import MERGE_BYTES, work_share
from quire.plan.shard.plan import Site

RANKS, TOKENS, HEADS, KV, DEPTH = 8, 8192, 32, 8, 128

DOCUMENTS = (
    (0, 8192),
    (0, 256, 7648, 8192),
    (0, 4096, 8192),
    (0, 3104, 6304, 7904, 8064, 8192),
)
"""Where documents end, of which the variable-length benchmark takes turns: times RANKS."""


@attrs.frozen
class Point:
    """`way` is "zigzag", "ring" (plain order) or "gathered" (plain order)."""

    device: str
    api: str
    way: str
    both: bool
    published: float
    flash: float
    fitted: bool = False

    @property
    def share(self) -> float:
        """Of the speed of flash attention."""
        return self.published / self.flash


def _points() -> tuple[Point, ...]:
    rows = {
        ("8 × H800", "batch"): ((73.9, 63.0, 38.5), (19.3, 17.4, 10.4)),
        ("8 × A100", "batch"): ((46.7, 38.2, 24.0), (11.8, 10.6, 6.2)),
        ("8 × H800", "variable length"): ((106.6, 74.8, 60.8), (28.2, 21.4, 16.4)),
        ("8 × A100", "variable length"): ((66.5, 47.9, 34.3), (16.7, 13.4, 9.7)),
    }
    made = []
    for (device, api), passes in rows.items():
        other = "ring" if api == "batch" else "gathered"
        for both, (flash, zigzag, third) in enumerate(passes):
            made.append(Point(device, api, "zigzag", bool(both), zigzag, flash, api == "batch"))
            made.append(Point(device, api, other, bool(both), third, flash))
    return tuple(made)


POINTS = _points()

H800 = attrs.evolve(
    TOPOLOGIES["h100"], near=attrs.evolve(TOPOLOGIES["h100"].near, bandwidth=0.8 * 200e9)
)
NEAR: dict[str, Topology] = {"8 × H800": H800, "8 × A100": TOPOLOGIES["a100"]}


def predicted(point: Point, merge_bytes: float = MERGE_BYTES) -> float:
    """Seconds of an iteration by the planner's model, from flash attention's published time."""
    topology, even = NEAR[point.device], 1 / point.flash
    merge = (2 if point.both else 1) * RANKS * TOKENS * HEADS * DEPTH / topology.bandwidth
    if point.way == "zigzag":
        return even + merge_bytes * merge
    if point.way == "ring":
        return even * RANKS * work_share(_site(), "ring", RANKS, RANKS, 1) + merge_bytes * merge
    # Keys are gathered in forward, again in backward, and their gradients scattered.
    keys = 2 * TOKENS * KV * DEPTH * 2
    moved = (3 if point.both else 1) * topology.all_gather(keys, RANKS)
    return even * busiest(DOCUMENTS) + moved


def _site() -> Site:
    size = RANKS * TOKENS
    return Site(
        "", "", "", "", "", None, 0, "", (), None, 0.0, 1, HEADS, KV, DEPTH, size, size, 2
    )  # fmt: skip


def busiest(lists: tuple[tuple[int, ...], ...]) -> float:
    """Pairs of the rank with most, over the mean, with documents in plain order: those of the
    lists added up, as the benchmark takes turns."""
    most = total = 0
    for ends in lists:
        pairs = [0] * RANKS
        for a, b in pairwise(ends):
            first, last = a * RANKS, b * RANKS
            for rank in range(RANKS):
                lo, hi = max(first, rank * TOKENS), min(last, (rank + 1) * TOKENS)
                if lo < hi:
                    pairs[rank] += (hi - lo) * (lo + hi - 2 * first) // 2
        most += max(pairs)
        total += sum(pairs)
    return most * RANKS / total


def best_fit() -> float:
    """Bytes an element and hop, by least squares of the seconds over the points fitted to."""
    top = bottom = 0.0
    for point in POINTS:
        if point.fitted:
            even = 1 / point.flash
            unit = predicted(point, 1.0) - even
            # Relative to the time of the pass, so that short passes count as much as long ones.
            top += unit * (1 / point.published - even) / even**2
            bottom += unit**2 / even**2
    return top / bottom


def rows() -> list[str]:
    """The table of the page."""
    names = {"zigzag": "zigzag ring", "ring": "plain ring", "gathered": "gathered K/V, plain order"}
    made = []
    for point in POINTS:
        seconds = predicted(point)
        found = 1 / point.flash / seconds
        made.append(
            f"| {point.device} | {point.api} | {names[point.way]} | "
            f"{'both' if point.both else 'forward'} | {100 * point.share:.1f} % | "
            f"{100 * found:.1f} % | {100 * (found - point.share):+.1f} | "
            f"{1e3 * (1 / point.published - seconds):+.2f} ms | "
            f"{'yes' if point.fitted else 'no'} |"
        )
    return made
