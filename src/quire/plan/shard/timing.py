"""Seconds of a training step on each device, predicted: what its ops, its attentions, what is made
again, and the exchange of parameters and gradients take."""

from __future__ import annotations

import attrs

from quire.cost.collectives import Topology
from quire.plan.shard.plan import Candidate

HALF = 2  # bytes of a parameter or gradient on the wire


@attrs.frozen
class StepTime:
    """Predicted seconds of one device in one step. `ideal` is the compute of all devices, spread
    evenly, without what is made again."""

    ideal: float
    compute: float
    merge: float
    exposed: float
    gradients: float
    again: float

    @property
    def total(self) -> float:
        return self.compute + self.merge + self.exposed + self.gradients + self.again

    @property
    def overhead(self) -> float:
        """Share that being many adds: transfers not hidden, merges, uneven work."""
        return (self.total - self.again) / self.ideal - 1

    @property
    def efficiency(self) -> float:
        return self.ideal / (self.total - self.again)


def step_time(
    chosen: tuple[Candidate, ...],
    flops: float,
    local_flops: float,
    pairs_seconds: float,
    parameters: int,
    again: float,
    ranks: int,
    topology: Topology,
) -> StepTime:
    """`flops` of a step's ops but attention on all devices, `local_flops` on one; `pairs_seconds`
    of all attentions on one device that did it all. Parameters are fetched for forward and for
    backward and their gradients spread (FSDP over all ranks), hidden behind compute as far as that
    lasts."""
    work = local_flops / topology.flops
    attention = sum(c.compute for c in chosen)
    moved = 3 * topology.all_gather(HALF * parameters / ranks, ranks)
    return StepTime(
        ideal=flops / ranks / topology.flops + pairs_seconds / ranks,
        compute=work + attention,
        merge=sum(c.merge for c in chosen),
        exposed=sum(c.exposed for c in chosen),
        gradients=max(0.0, moved - work - attention),
        again=again,
    )
