"""The planner's choices as a `Plan`, and the part sizes of a plan at other lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import sympy

from quire.capture.program import Program
from quire.cost.body import Body, Place
from quire.cost.liveness import Liveness
from quire.cost.machine import Machine
from quire.cost.model import Model, with_slack, without_slack
from quire.errors import BudgetError
from quire.flow.propagate import Spread, Storage
from quire.plan.chunk import Choice, ChunkPlanner, part_sizes
from quire.plan.moments import after
from quire.plan.plan import Moment, Placed, Plan, Region


def build_plan(
    planner: ChunkPlanner,
    choices: Sequence[Choice],
    *,
    budget: int | None,
    baseline: tuple[int, float],
    before: tuple[Moment, ...],
    rewrites: tuple[str, ...] = (),
) -> Plan:
    """The plan that `choices` make of the planner's program."""
    regions: list[Region] = []
    overwrites = []
    alike: dict[tuple[int, int], str] = {}
    for choice in choices:
        if choice.candidate is not None:
            name = f"r{len(regions)}"
            key = (id(choice.candidate), choice.part)
            regions.append(_region(planner, choice, name, alike.setdefault(key, name)))
            continue
        over = planner.overwritten(choice.start)
        if over is not None:
            overwrites.append((planner.order[choice.start].name, over.name))
    return Plan(
        program=fingerprint(planner.program),
        budget=budget,
        baseline_bytes=baseline[0],
        peak_bytes=with_slack(max((c.peak for c in choices), default=0)),
        baseline_seconds=baseline[1],
        seconds=sum(c.seconds for c in choices),
        order=tuple(s.name for s in planner.order),
        regions=tuple(regions),
        overwrites=tuple(overwrites),
        lengths=tuple((str(k), v) for k, v in planner.lengths.items()),
        rewrites=rewrites,
        before=before,
        after=after(planner, choices),
    )


def _region(planner: ChunkPlanner, choice: Choice, name: str, like: str) -> Region:
    candidate = choice.candidate
    assert candidate is not None
    steps = planner.order[choice.start : choice.end]
    own = {s: planner.order[planner.index_in(choice, s)] for s in candidate.body.steps}
    places = tuple(
        Placed(own[s].name, p.kind, p.slot, s in candidate.body.outputs)
        for s, p in candidate.body.places.items()
    )
    at = choice.end
    reuse = tuple(
        (planner.order[at - out].name, planner.order[at - base].name)
        for out, base in candidate.reuse
    )
    seed = steps[-1]
    flow = planner.storage.flows[seed].axes[candidate.axis]
    write = next((w for w in flow.writes if w is not None), None)
    what = f"dim {write.dim} of {seed.name}" if write else f"a folded dim of {seed.name}"
    module = planner.program.ops[seed].where.module
    unsplit = [planner.whole[k] for k in range(choice.start, choice.end)]
    return Region(
        name=name,
        seed=seed.name,
        axis=candidate.axis,
        steps=tuple(s.name for s in steps),
        size=candidate.size,
        part=choice.part,
        label=what,
        module=module,
        join=flow.join.value,
        places=places,
        reuse=reuse,
        like=like,
        peak_bytes=choice.peak,
        seconds=choice.seconds,
        unsplit_bytes=max(w.peak for w in unsplit),
        unsplit_seconds=sum(w.seconds for w in unsplit),
    )


def fingerprint(program: Program) -> str:
    """A hash of the program's graph: ops, arguments, sizes. The same from run to run."""
    digest = hashlib.sha256()
    for node in program.graph.nodes:
        infos = [(i.shape, str(i.dtype)) for i in program.infos.get(node, ())]
        digest.update(f"{node.name}|{node.target}|{node.args}|{node.kwargs}|{infos}\n".encode())
    return digest.hexdigest()


class PartSizer:
    """Part sizes of a plan's regions at given lengths, so that the budget is kept there too.

    Raises BudgetError where even parts of one unit do not fit.
    """

    def __init__(self, program: Program, plan: Plan, machine: Machine, threads: int) -> None:
        self.program, self.plan = program, plan
        self.machine, self.threads = machine, threads

    def __call__(self, lengths: Sequence[int]) -> Mapping[str, int]:
        planned = {name: value for name, value in self.plan.lengths}
        env = {s.name: v for s, v in zip(self.program.symbols, lengths, strict=True)}
        if all(planned[str(name)] == value for name, value in env.items()):
            return {r.name: r.part for r in self.plan.regions}
        return self._sizes(env)

    def _sizes(self, env: Mapping[sympy.Symbol, int]) -> Mapping[str, int]:
        storage = Storage(self.program, env)
        model = Model(storage, env, self.machine, self.threads)
        nodes = {n.name: n for n in self.program.graph.nodes}
        order = [nodes[name] for name in self.plan.order]
        live = Liveness(storage, model.nbytes, order)
        index = {step: k for k, step in enumerate(order)}
        budget = self.plan.budget
        room = float("inf") if budget is None else without_slack(budget)
        sizes: dict[str, int] = {}
        for region in self.plan.regions:
            spread = Spread(storage, nodes[region.seed], region.axis)
            for name in reversed(region.steps):
                spread.grow(nodes[name])
            escapes = frozenset(nodes[p.step] for p in region.places if p.escapes)
            places = {
                nodes[p.step]: Place(p.kind, p.slot, p.escapes and p.kind != "out")
                for p in region.places
            }
            body = Body(spread, model, escapes, places)
            outputs = sum(model.nbytes[s] for s in escapes)
            outputs -= sum(model.nbytes[nodes[out]] for out, _ in region.reuse)
            held = live.before[index[nodes[region.steps[0]]]] + outputs
            size = int(spread.size)
            tries = part_sizes(max(size, 1), region.part) or (region.part,)
            chosen = next((n for n in tries if held + body.scratch(n) <= room), None)
            if chosen is None:
                raise self._too_long(env, region)
            sizes[region.name] = chosen
        inside = {name for region in self.plan.regions for name in region.steps}
        written_over = dict(self.plan.overwrites)
        for k, step in enumerate(order):
            own = 0 if step.name in written_over else model.nbytes[step]
            peak = live.before[k] + own + model.workspace[step]
            if step.name not in inside and peak > room:
                raise self._too_long(env, None)
        return sizes

    def _too_long(self, env: Mapping[sympy.Symbol, int], region: Region | None) -> BudgetError:
        lengths = ", ".join(f"{k} = {v}" for k, v in env.items())
        return BudgetError(
            f"a call with {lengths} does not fit the budget of {self.plan.budget} bytes",
            best=self.plan,
            binding=(),
            where=region.module if region else "",
            allowed="lengths for which the plan fits its budget",
            fix="compile with a larger memory=, or with dynamic_shapes whose range holds this "
            "length as its largest",
        )
