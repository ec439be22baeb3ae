"""What a shard plan says: frozen data, by node name, without tensors or process groups.

Sizes are ints, of one length, or expressions of lengths that are free (`plan.shard.lengths`).
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import attrs

from quire.plan.layout import Layout

Way = Literal["ulysses", "ring", "gathered", "hybrid", "rows"]

FILLS = {"max": -math.inf, "min": math.inf}
"""What padding rows hold in folds of other kinds than sums, whose padding is 0."""


@attrs.frozen
class Placed:
    """A tensor spread over the mesh: dim `dim` holds `outer` blocks of a sequence of `size` rows,
    `scale` elements each. `routed`: each rank holds its own rows, in an order the data chose."""

    dim: int
    size: Any
    outer: int = 1
    scale: int = 1
    routed: bool = False


@attrs.frozen
class Step:
    """How one op runs.

    `whole`: on whole tensors, the same on every rank. `local`: on this rank's part. `sum`, `mean`,
    `max`, `min`: on this rank's part, then joined over the ranks. `loss`: cross entropy of this
    rank's rows, joined. `fixed`: rows at fixed places, brought to every rank. `drawn`: random
    numbers of this rank's own for its part. `site`: an attention.
    `cuts` are operands to slice first (index → where), `gathers` those to bring together first.
    `changed` are arguments that differ from the op's own.
    """

    node: str
    kind: Literal["whole", "local", "sum", "mean", "max", "min", "loss", "fixed", "drawn", "site"]
    out: tuple[Placed | None, ...] = ()
    cuts: tuple[tuple[int, Placed], ...] = ()
    gathers: tuple[tuple[int, Placed], ...] = ()
    fills: tuple[tuple[int, Placed], ...] = ()
    changed: tuple[tuple[str, Any], ...] = ()
    sent: int = 0
    """Bytes a rank sends in forward, attention not counted."""


def padding(kind: str, op: Any, index: int) -> float:
    """What operand `index` of `op` holds in rows past the end, so that its fold over rows does not
    count them: a target that is ignored, or the fold's idle element."""
    ignored = op.get("ignore_index")
    if ignored is not None and op["target"].index == index:
        return float(ignored)
    return FILLS.get(kind, 0.0)


@attrs.frozen
class Stretch:
    """Consecutive ops of module `module`, each row by itself: run on `rows` rows of a rank's at a
    time, by `steps`. `given` are the spread tensors they read from outside, `made` those that are
    read outside, with their places."""

    module: str
    nodes: tuple[str, ...]
    size: Any
    rows: int
    steps: tuple[Step, ...]
    given: tuple[tuple[str, Placed], ...]
    made: tuple[tuple[str, Placed], ...]


@attrs.frozen
class Candidate:
    """One way to do an attention: bytes a rank sends forward and in both directions, seconds of
    compute, of transfer, and of transfer that compute does not hide, extra bytes held, why it
    cannot be taken if so, and seconds that blocks take to be merged."""

    way: Way
    ring_of: int
    order: int
    forward_bytes: int = 0
    total_bytes: int = 0
    compute: float = 0.0
    transfer: float = 0.0
    exposed: float = 0.0
    held: int = 0
    refused: str = ""
    merge: float = 0.0

    @property
    def seconds(self) -> float:
        return self.compute + self.merge + self.exposed


@attrs.frozen
class Site:
    """One attention of the graph.

    `q`, `k`, `v` are node names, keys and values before they are repeated for grouped heads; the
    band is `left … right` around a query's own place (None: no end), `rule` an expression over
    the nodes `leaves` for the rest of the mask. Sizes at the planned length.
    """

    node: str
    module: str
    q: str
    k: str
    v: str
    left: int | None
    right: int | None
    rule: str
    leaves: tuple[str, ...]
    scale: float | None
    dropout: float
    batch: int
    heads: int
    kv: int
    depth: int
    q_size: Any
    k_size: Any
    itemsize: int
    plain: str = ""
    """Why the graph's own op must run, on gathered keys and values; "" if it need not."""


@attrs.frozen
class ShardPlan:
    """What `quire.shard` decided for one length."""

    ranks: int
    order: int
    sites: tuple[Site, ...]
    chosen: tuple[Candidate, ...]
    candidates: tuple[tuple[Candidate, ...], ...]
    steps: tuple[Step, ...]
    inputs: tuple[tuple[str, Placed], ...]
    """The user's inputs that may be given as this rank's part: path and place."""
    outputs: tuple[Placed | None, ...]
    notes: tuple[str, ...] = ()
    memory: Any = None
    time: Any = None
    """Predicted seconds of a step: `shard.timing.StepTime`."""
    links: str = ""
    head: tuple[str, ...] = ()
    """Nodes of the scores, if they are computed in `head_parts` parts within the loss."""
    head_parts: int = 1
    stretches: tuple[Stretch, ...] = ()
    """Ops that run in parts of a rank's rows."""
    local: tuple[tuple[Any, Any], ...] = ()
    """A rank's rows, a symbol, of each sequence whose size is free."""

    def layout(self, size: int) -> Layout:
        return Layout(size, self.ranks, self.order)

    def to_json(self, *, indent: int | None = None) -> str:
        """Sizes that are expressions of lengths are text."""
        return json.dumps(attrs.asdict(self), indent=indent, sort_keys=True, default=str)

    def explain(self) -> str:
        """Per attention: each candidate, its bytes, milliseconds and memory, and why one won."""
        order = f"zigzag over {self.order}" if self.order > 1 else "plain"
        rows = [f"{self.ranks} ranks, order {order}; times are predicted ({self.links})"]
        seen: dict[Any, list[str]] = {}
        for site, best, tried in zip(self.sites, self.chosen, self.candidates, strict=True):
            seen.setdefault((best, tried), []).append(site.module or site.node)
        for (best, tried), modules in seen.items():
            where = modules[0] + (f" and {len(modules) - 1} like it" if len(modules) > 1 else "")
            rows.append(f"attention {where}: {describe(best, self.ranks)}")
            for c in sorted(tried, key=lambda c: (bool(c.refused), c.seconds)):
                mark = "→" if c == best else " "
                what = describe(c, self.ranks)
                if c.refused:
                    rows.append(f"  {mark} {what}: not possible, {c.refused}")
                    continue
                rows.append(
                    f"  {mark} {what}: {c.forward_bytes / 2**20:.2f} MiB forward, "
                    f"{c.total_bytes / 2**20:.2f} MiB in all, compute {1e3 * c.compute:.3f} ms, "
                    f"merge {1e3 * c.merge:.3f} ms, "
                    f"transfer {1e3 * c.transfer:.3f} ms, exposed {1e3 * c.exposed:.3f} ms, "
                    f"{c.held / 2**20:.2f} MiB held"
                )
            rows.append(f"    {why(best, tried, self.ranks)}")
        rows += [f"note: {text}" for text in self.notes]
        if self.memory is not None:
            rows.append(self.memory.explain())
        if self.time is not None:
            rows.append(
                f"step (predicted): {self.time.total:.3f} s, overhead "
                f"{100 * self.time.overhead:.1f} %, efficiency {100 * self.time.efficiency:.1f} %"
            )
        return "\n".join(rows)


def describe(c: Candidate, ranks: int) -> str:
    names = {"rows": "gathered K/V, the graph's own attention", "gathered": "gathered K/V"}
    if c.way == "hybrid":
        return f"hybrid, Ulysses {ranks // c.ring_of} × ring {c.ring_of}"
    return names.get(c.way, c.way)


def why(best: Candidate, tried: tuple[Candidate, ...], ranks: int) -> str:
    """In what the best is ahead of the second."""
    others = [c for c in tried if c != best and not c.refused]
    if not others:
        return "the only one possible"
    second = min(others, key=lambda c: c.seconds)
    gap = second.seconds - best.seconds
    if gap <= 0:
        other = describe(second, ranks)
        return f"not the fastest alone ({other} is), but with the order of its layers"
    if best.compute < second.compute - 1e-12:
        return f"least time: {1e3 * gap:.3f} ms ahead, its compute is spread more evenly"
    if best.merge < second.merge and best.exposed >= second.exposed:
        return f"least time: {1e3 * gap:.3f} ms ahead, it merges fewer blocks"
    if best.total_bytes <= second.total_bytes:
        return f"least time: {1e3 * gap:.3f} ms ahead, it sends fewer bytes"
    return f"least time: {1e3 * gap:.3f} ms ahead, compute hides more of its bytes"
