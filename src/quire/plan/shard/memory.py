"""Bytes of a device in a training step, and what is recomputed or offloaded to keep a budget.

A *region* is the largest module that holds one attention and no other: a layer. What autograd
keeps of it for backward is read from the graph: operands of products and of nonlinear ops, once
each; what only moves, adds or sums is not kept. A region may keep all that, keep only what it
reads from outside and compute again, or send either to the host and fetch it back. What treats
each row by itself may go in parts of the rows: ops of a layer (`stretch`), scores and loss
(`head`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import attrs
from torch import fx

from quire.capture.program import Program
from quire.cost.collectives import Topology
from quire.errors import BudgetError
from quire.flow.registry import flow_of
from quire.plan.shard.flow import Spreading
from quire.plan.shard.head import Head
from quire.plan.shard.keep import Keep, Region, Row, choices
from quire.plan.shard.needs import Needs
from quire.plan.shard.plan import Placed, Site
from quire.plan.shard.stretch import PARTS, Rowwise, find_stretches

HEAD_PARTS = (1, 2, 4, 8, 16, 32, 64)


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
    parts: int = 1
    """Parts of a rank's rows that a layer's ops on rows are computed in."""
    needs: Needs | None = None
    on_host: int = 0
    """Bytes of states in the host's memory, for each device; 0: they lie on the device."""

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
            f"{self.working / 2**30:.2f} GiB; layers: {shown}, ops on rows in {self.parts} parts; "
            f"scores and loss in {self.head_parts} parts; {self.extra_seconds:.3f} s extra"
            + (f"\n{self.hosting}" if self.on_host else "")
        )

    @property
    def hosting(self) -> str:
        """What is on the host, what that costs, and what the user has to do; "" without states
        there."""
        if not self.on_host or self.needs is None:
            return ""
        return (
            "parameters, gradients and optimiser on the host, as nothing fits with them here: "
            f"{self.on_host / 2**30:.2f} GiB of its memory for each device, beside "
            f"{Row.of(self.regions).host / 2**30:.2f} GiB that layers send; Adam runs there, "
            f"{self.needs.adam:.3f} s of the extra. Wrap each layer, and then the model, with "
            "torch.distributed.fsdp.fully_shard(..., offload_policy=CPUOffloadPolicy())"
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
    spreading: Spreading,
    rows: Callable[[int], int],
    topology: Topology,
    *,
    ranks: int,
    budget: int | None,
    held: int,
    head: Head | None = None,
) -> tuple[Memory, tuple[Rowwise, ...]]:
    """The choice with the least extra time that keeps `budget` (None: keep everything), and the
    ops that go in `parts` parts of the rows if there are more than one.

    `rows` gives a rank's rows of a sequence; `held` are the bytes the largest attention holds.
    Parameters and their states are counted as spread over all ranks (FSDP).

    Raises BudgetError naming what binds if nothing fits.
    """
    places = spreading.places
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
    kept: dict[fx.Node, tuple[str, int]] = {}
    border: dict[str, int] = {}
    flops: dict[fx.Node, float] = {}
    made: list[fx.Node] = []
    for node in program.infos:
        # What the attentions do without (masks, repeated keys) has no place.
        if node.op == "placeholder" or node not in places or node in scores:
            continue
        where = inside[node]
        made.append(node)
        readers = [program.ops[u] for u in node.users if u in program.ops and u in places]
        base = _base(program, node)
        if any(_keeps(op) for op in readers) and base not in kept and base.op != "placeholder":
            kept[base] = where, nbytes[node]
        for other in {inside[u] for u in node.users} - {"", where}:
            border[other] = border.get(other, 0) + nbytes[node]
    for node, op in program.ops.items():
        if node in places:
            flops[node] = float(flow_of(op).flops) * _share(program, node, places, rows)

    def summed(module: str, nodes: Iterable[fx.Node]) -> float:
        return sum(flops.get(n, 0.0) for n in nodes if inside[n] == module) / topology.flops

    regions = {
        m: Region(
            m,
            sum(size for where, size in kept.values() if where == m),
            border.get(m, 0),
            summed(m, flops),
        )
        for m in sorted(home)
    }
    stretches: list[Rowwise] = []
    for one in find_stretches(program, spreading.steps, places, inside):
        own, ends = set(one.nodes), {_base(program, n) for n, _ in one.made}
        gone = sum(size for base, (_, size) in kept.items() if base in own - ends)
        bases = {_base(program, n) for n, _ in one.given}
        edge = sum(nbytes[b] for b in bases if b not in kept and b.op != "placeholder")
        if gone <= edge:
            continue
        stretches.append(one)
        region = regions[one.module]
        regions[one.module] = attrs.evolve(
            region,
            rowwise=region.rowwise + gone,
            edge=region.edge + edge,
            again=region.again + summed(one.module, one.nodes),
        )
    parameters, own, apart = _parameters(program, inside, places)
    rowwise = {n for one in stretches for n in one.nodes}
    needs = Needs(
        tuple(attrs.evolve(r, parameters=own.get(m, 0)) for m, r in regions.items()),
        parameters,
        ranks,
        sum(size for where, size in kept.values() if not where),
        held + 3 * max((nbytes[n] for n in made if n not in rowwise), default=0),
        held=held,
        rowwise=3 * max((nbytes[n] for n in rowwise), default=0),
        rows=min((rows(one.size) for one in stretches), default=1),
        apart=apart,
    )
    if head is not None:
        needs = attrs.evolve(
            needs,
            scored=3 * max(nbytes[n] for n in head.scores),
            again=flops[head.linear] / topology.flops,
        )
    return fit(needs, budget, topology.host), tuple(stretches)


def _parameters(
    program: Program, inside: Mapping[fx.Node, str], places: Mapping[fx.Node, Placed | None]
) -> tuple[int, dict[str, int], int]:
    """All parameters, those of each region, and those that no one region reads alone."""
    sizes: dict[int, int] = {}
    readers: dict[int, set[str]] = {}
    for i in program.inputs:
        if i.kind == "parameter":
            key = id(program.state[i.target])  # one that has several names counts once
            sizes[key] = math.prod(int(s) for s in program.info(i.node).shape)
            own = {inside[u] for u in i.node.users if u in places}
            readers.setdefault(key, set()).update(own)
    found: dict[str, int] = {}
    for key, size in sizes.items():
        region = readers[key].pop() if len(readers[key]) == 1 else ""
        found[region] = found.get(region, 0) + size
    apart = found.pop("", 0)
    return sum(sizes.values()), found, apart


def fit(needs: Needs, budget: int | None, host: float) -> Memory:
    """The least extra seconds within `budget` and `host` bytes, over all choices and parts of the
    scores. States lie on the host only where nothing fits with them on the device; what layers
    send there has what they leave of it. Raises BudgetError naming what binds if nothing fits."""
    hosted = needs.with_host()
    able = [needs, hosted] if hosted.on_host <= host else [needs]
    tried = []
    for one in able:
        tried.append(_least(one, budget, host - one.on_host))
        if budget is None or tried[-1].peak <= budget:
            return tried[-1]
    lowest = min(tried, key=lambda m: m.peak)
    binding = [
        f"parameters, gradients and optimiser: {lowest.states} bytes",
        f"outside layers (embedding, head, loss): {lowest.outside} bytes",
        f"largest working set: {lowest.working} bytes",
        f"layers, recomputed or offloaded: {lowest.kept} bytes",
    ]
    if lowest.on_host or hosted not in able:
        binding.append(f"states on the host: {hosted.on_host} of {host:.0f} bytes a device")
    raise BudgetError(
        f"no plan fits {budget} bytes a device; the best needs {lowest.peak} bytes",
        best=None,
        binding=tuple(binding),
        fix="more devices, more memory, or a shorter sequence",
    )


def _least(needs: Needs, budget: int | None, host: float) -> Memory:
    """The least extra seconds within `budget`, or the least bytes if nothing is; layers send at
    most `host` bytes to the host."""
    able: list[Memory] = []
    lowest: Memory | None = None
    none_extra = needs.hosting + Row.of(tuple((r, "keep") for r in needs.regions)).seconds
    for parts in [n for n in PARTS if n <= needs.rows]:
        rows = choices(tuple(r.in_parts(parts) for r in needs.regions), host)
        for head_parts in HEAD_PARTS if needs.scored else (1,):
            again = needs.again if head_parts > 1 else 0.0
            working = needs.working_in(parts, head_parts)
            fixed = needs.states + needs.outside + working
            row = rows.fastest(math.inf if budget is None else budget - fixed)
            best = row if row is not None else rows.smallest()
            found = Memory(
                budget,
                needs.states,
                needs.outside,
                best.hows,
                working,
                best.seconds + again + needs.hosting,
                head_parts,
                parts,
                needs,
                needs.on_host,
            )
            if row is not None:
                able.append(found)
            elif lowest is None or found.peak < lowest.peak:
                lowest = found
        if any(m.extra_seconds <= none_extra for m in able):
            break
    if able:
        return min(able, key=lambda m: (m.extra_seconds, m.parts, m.head_parts, m.peak))
    assert lowest is not None
    return lowest


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
