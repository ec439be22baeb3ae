"""What lives when, before and after a plan, for the report and for errors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from quire.plan.chunk import Choice, ChunkPlanner
from quire.plan.plan import Holding, Moment

SHOWN = 8
"""Tensors named per moment; the rest are summed up in one entry."""


def before(planner: ChunkPlanner) -> tuple[Moment, ...]:
    """Each step of the program as captured."""
    rows = []
    for k, step in enumerate(planner.order):
        nbytes = planner.live.before[k] + planner.model.nbytes[step]
        nbytes += planner.model.workspace[step]
        held = [*_live(planner, k), step]
        extra = [Holding("workspace", "", planner.model.workspace[step])]
        rows.append(_moment(planner, step, nbytes, planner.model.seconds(step), held, extra))
    return tuple(rows)


def after(planner: ChunkPlanner, choices: Sequence[Choice]) -> tuple[Moment, ...]:
    """Each step run whole, and each region, of a plan."""
    rows = []
    for number, choice in enumerate(choices):
        step = planner.order[choice.end - 1]
        held = _live(planner, choice.start)
        extra: list[Holding] = []
        region = ""
        if choice.candidate is None:
            if planner.overwritten(choice.start) is None:
                held.append(step)
            extra.append(Holding("workspace", "", planner.model.workspace[step]))
        else:
            region = f"r{sum(c.candidate is not None for c in choices[:number])}"
            written_over = {choice.end - out for out, _ in choice.candidate.reuse}
            for output in choice.candidate.body.outputs:
                at = planner.index_in(choice, output)
                if at not in written_over:
                    held.append(planner.order[at])
            scratch = choice.candidate.scratch(choice.part)
            extra.append(Holding(f"scratch of {region}", "", scratch))
        rows.append(_moment(planner, step, choice.peak, choice.seconds, held, extra, region))
    return tuple(rows)


def _live(planner: ChunkPlanner, k: int) -> list[fx.Node]:
    last = planner.live.last
    return [s for s in planner.order[:k] if last[s] >= k]


def _moment(
    planner: ChunkPlanner,
    step: fx.Node,
    nbytes: int,
    seconds: float,
    held: list[fx.Node],
    extra: list[Holding],
    region: str = "",
) -> Moment:
    ops = planner.program.ops
    holds = [Holding(s.name, ops[s].where.module, planner.model.nbytes[s]) for s in held]
    holds = sorted((*holds, *extra), key=lambda h: -h.nbytes)
    rest = sum(h.nbytes for h in holds[SHOWN:])
    shown = [h for h in holds[:SHOWN] if h.nbytes]
    if rest:
        shown.append(Holding(f"{len(holds) - SHOWN} smaller", "", rest))
    return Moment(step.name, ops[step].where.module, nbytes, seconds, tuple(shown), region)
