"""Bytes of a device in a training step, and what is recomputed or offloaded to keep a budget.

A *region* is the largest module that holds one attention and no other: a layer. What autograd
keeps of it for backward is read from the graph: operands of products and of nonlinear ops, once
each; what only moves, adds or sums is not kept. A region may keep all that, keep only what it
reads from outside and compute again, or send either to the host and fetch it back. Scores and
loss may go in parts of the rows (`shard_head`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs
from torch import fx

from quire.capture.program import Program
from quire.cost.collectives import Topology
from quire.errors import BudgetError
from quire.flow.registry import flow_of
from quire.plan.shard_head import Head
from quire.plan.shard_keep import Keep, Region, Row, choices
from quire.plan.shard_plan import Placed, Site

HEAD_PARTS = (1, 2, 4, 8, 16, 32, 64)

STATE_BYTES = 16
"""Per parameter: half-precision weight and gradient, fp32 weight and two moments of Adam."""


@attrs.frozen
class Memory:
    """Predicted bytes of one device at the peak of a step."""

    budget: int | None
    states: int
    outside: int
    regions: tuple[tuple[Region, Keep], ...]
    working: int
    extra_seconds: float
    head_parts: int = 1
    """Parts that scores and loss are computed in."""

    @property
    def peak(self) -> int:
        return self.states + self.outside + self.working + self.kept

    @property
    def kept(self) -> int:
        """Bytes of all regions when the last of them is done, and of the one under way in backward
        that was computed again or fetched back."""
        return Row.of(self.regions).held

    def how(self, module: str) -> Keep:
        for region, how in self.regions:
            if region.module == module:
                return how
        return "keep"

    def explain(self) -> str:
        counts: dict[str, int] = {}
        for _, how in self.regions:
            counts[how] = counts.get(how, 0) + 1
        shown = ", ".join(f"{n} {how}" for how, n in sorted(counts.items())) or "none"
        budget = "none" if self.budget is None else f"{self.budget / 2**30:.2f} GiB"
        return (
            f"memory (predicted): peak {self.peak / 2**30:.2f} GiB, budget {budget}; states "
            f"{self.states / 2**30:.2f}, outside layers {self.outside / 2**30:.2f}, working "
            f"{self.working / 2**30:.2f} GiB; layers: {shown}; scores and loss in "
            f"{self.head_parts} parts; {self.extra_seconds:.3f} s extra"
        )


def regions_of(sites: tuple[Site, ...], paths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Site node → module of its region; `paths` gives each site's modules, outermost first."""
    count: dict[str, int] = {}
    for site in sites:
        for path in dict.fromkeys(paths[site.node]):
            count[path] = count.get(path, 0) + 1
    return {site.node: next((p for p in paths[site.node] if count[p] == 1), "") for site in sites}


def plan_memory(
    program: Program,
    sites: tuple[Site, ...],
    places: Mapping[fx.Node, Placed | None],
    rows: Callable[[int], int],
    topology: Topology,
    *,
    ranks: int,
    budget: int | None,
    held: int,
    head: Head | None = None,
) -> Memory:
    """The choice with the least extra time that keeps `budget` (None: keep everything).

    `rows` gives a rank's rows of a sequence; `held` are the bytes the largest attention holds.
    Parameters and their states are counted as spread over all ranks (FSDP).

    Raises BudgetError naming what binds if nothing fits.
    """
    paths = {
        n.name: tuple(p for p, _ in n.meta.get("nn_module_stack", {}).values() if p)
        for n in program.graph.nodes
    }
    home = set(regions_of(sites, paths).values()) - {""}
    inside: dict[fx.Node, str] = {
        n: next((p for p in paths[n.name] if p in home), "") for n in program.graph.nodes
    }
    nbytes = {n: _bytes(program, n, places, rows) for n in program.infos}
    scores = set(head.scores if head is not None else ())
    kept: dict[str, int] = {}
    border: dict[str, int] = {}
    flops: dict[str, float] = {}
    largest: dict[str, int] = {}
    counted: set[fx.Node] = set()
    for node in program.infos:
        # What the attentions do without (masks, repeated keys) has no place.
        if node.op == "placeholder" or node not in places:
            continue
        if node in scores:
            continue
        where = inside[node]
        largest[where] = max(largest.get(where, 0), nbytes[node])
        readers = [program.ops[u] for u in node.users if u in program.ops and u in places]
        if any(_keeps(op) for op in readers):
            base = _base(program, node)
            if base not in counted and base.op != "placeholder":
                counted.add(base)
                kept[where] = kept.get(where, 0) + nbytes[node]
        if any(inside[u] not in ("", where) for u in node.users):
            for other in {inside[u] for u in node.users} - {"", where}:
                border[other] = border.get(other, 0) + nbytes[node]
    for node, op in program.ops.items():
        if node not in places:
            continue
        where = inside[node]
        share = _share(program, node, places, rows)
        flops[where] = flops.get(where, 0.0) + float(flow_of(op).flops) * share
    parameters = sum(
        math.prod(int(s) for s in program.info(i.node).shape)
        for i in program.inputs
        if i.kind == "parameter"
    )
    regions = tuple(
        Region(m, kept.get(m, 0), border.get(m, 0), flops.get(m, 0.0) / topology.flops)
        for m in sorted(home)
    )
    working = held + 3 * max(largest.values(), default=0)
    states = STATE_BYTES * parameters // ranks + 2 * 2 * parameters // max(len(regions), 1)
    outside = kept.get("", 0)
    if head is None:
        return choose_memory(regions, states, outside, working, budget, topology.host)
    again = float(flow_of(program.ops[head.linear]).flops) / topology.flops
    again *= _share(program, head.linear, places, rows)
    scored = 3 * max(nbytes[n] for n in head.scores)

    def choose(parts: int) -> Memory:
        live = max(working, scored // parts)
        found = choose_memory(regions, states, outside, live, budget, topology.host)
        extra = found.extra_seconds + (again if parts > 1 else 0.0)
        return attrs.evolve(found, extra_seconds=extra, head_parts=parts)

    return _best_parts(choose)


def _best_parts(choose: Callable[[int], Memory]) -> Memory:
    """Scores, their gradient, and one more while one is made from the other, in the parts that
    cost least of those that fit. Raises BudgetError if none does."""
    able: list[Memory] = []
    for parts in HEAD_PARTS:
        try:
            able.append(choose(parts))
        except BudgetError:
            if parts == HEAD_PARTS[-1] and not able:
                raise
    return min(able, key=lambda m: (m.extra_seconds, m.head_parts))


def choose_memory(
    regions: tuple[Region, ...],
    states: int,
    outside: int,
    working: int,
    budget: int | None,
    host: float,
) -> Memory:
    """Least extra seconds within `budget`, and `host` bytes of the host."""
    rows = choices(regions, host)
    fixed = states + outside + working
    able = [row for row in rows if budget is None or fixed + row.held <= budget]
    if not able:
        low = min(rows, key=lambda row: row.held)
        least = Memory(budget, states, outside, low.hows, working, low.seconds)
        raise BudgetError(
            f"no plan fits {budget} bytes a device; the best needs {least.peak} bytes",
            best=None,
            binding=(
                f"parameters, gradients and optimiser: {states} bytes",
                f"outside layers (embedding, head, loss): {outside} bytes",
                f"largest working set: {working} bytes",
                f"layers, recomputed or offloaded: {least.kept} bytes",
            ),
            fix="more devices, more memory, or a shorter sequence",
        )
    best = min(able, key=lambda row: (row.seconds, row.held))
    return Memory(budget, states, outside, best.hows, working, best.seconds)


def _keeps(op: object) -> bool:
    """Whether an op's gradient reads its operands: it multiplies two tensors, or is no linear map
    of one."""
    flow = flow_of(op)  # type: ignore[arg-type]
    if getattr(op, "is_view", False) or not flow.axes:
        return False
    name = op.target._schema.name.removeprefix("aten::")  # type: ignore[attr-defined]
    return name not in _LINEAR


_LINEAR = {
    "add",
    "sub",
    "neg",
    "cat",
    "clone",
    "_to_copy",
    "sum",
    "mean",
    "slice",
    "stack",
    "expand",
    "constant_pad_nd",
    "pad",
    "contiguous",
    "to",
    "full_like",
    "zeros_like",
    "embedding",
    "arange",
}
"""Ops that are linear in each operand by itself: nothing of theirs is kept."""


def _base(program: Program, node: fx.Node) -> fx.Node:
    """The tensor whose memory `node` is a view of."""
    while (op := program.ops.get(node)) is not None and op.is_view and op.operands:
        node = op.operands[0].node
    return node


def _bytes(
    program: Program,
    node: fx.Node,
    places: Mapping[fx.Node, Placed | None],
    rows: Callable[[int], int],
) -> int:
    info, placed = program.info(node), places.get(node)
    whole = math.prod(int(s) for s in info.shape) * info.dtype.itemsize
    if placed is None or not placed.size:
        return whole
    return whole // placed.size * rows(placed.size)


def _share(
    program: Program,
    node: fx.Node,
    places: Mapping[fx.Node, Placed | None],
    rows: Callable[[int], int],
) -> float:
    """A rank's part of an op's work."""
    placed = places.get(node)
    if placed is None or not placed.size:
        return 1.0
    return rows(placed.size) / placed.size
