"""What a training step needs of one device before anything is chosen, and where its states lie:
parameters, gradients and Adam's moments, spread over all devices as FSDP2 does.

They lie on the devices, or in the host's memory (FSDP2's `CPUOffloadPolicy`): then a device fetches
its share of a layer's weights before they are gathered, in forward and in backward, sends its
share of the gradients back, and Adam runs on the host.
"""

from __future__ import annotations

import attrs

from quire.plan.shard.keep import HOST_BANDWIDTH, Region

STATE_BYTES = 16
"""Per parameter: half-precision weight and gradient, fp32 weight and two moments of Adam."""

WHOLE_BYTES = 4
"""Per parameter that is brought here: half-precision weight and gradient."""

COPIED_BYTES = 4
"""Per parameter of a share that goes between device and host, each time: FSDP2 copies fp32."""

ADAM_BYTES = 28
"""Per parameter that a step of Adam reads and writes: four fp32 numbers read, three written."""

HOST_MEMORY = 50e9
"""Bytes/s of the host's memory for each device: two sockets of eight DDR5-4800 channels each at
two thirds of the data sheet, shared by eight devices."""


@attrs.frozen
class Needs:
    """What a step needs of one device, before anything is chosen: its regions, the parameters of
    the model, and bytes: kept outside the regions, worked with at once, and that of all scores,
    with the seconds to make them again. `apart` are the parameters of no region."""

    regions: tuple[Region, ...]
    parameters: int
    ranks: int
    outside: int
    working: int
    scored: int = 0
    again: float = 0.0
    held: int = 0
    rowwise: int = 0
    """Worked with at once by ops on rows that may go in parts, beside what attention holds."""
    rows: int = 1
    """Rows of a rank: the most parts there can be."""
    apart: int = 0
    hosted: bool = False
    """The states lie in the host's memory."""

    @property
    def spread(self) -> int:
        """A device's share of all states."""
        return STATE_BYTES * self.parameters // self.ranks

    @property
    def states(self) -> int:
        """Bytes on the device: its share of the states, and weights and gradients brought here: of
        two layers (one is fetched while another is used), and of all that lies outside layers,
        which FSDP2 keeps from the step's beginning to its end. Of states on the host, the shares
        of these weights and gradients on their way."""
        whole = 2 * max((r.parameters for r in self.regions), default=0) + self.apart
        here = 2 * COPIED_BYTES * whole // self.ranks if self.hosted else self.spread
        return here + WHOLE_BYTES * whole

    @property
    def on_host(self) -> int:
        """Bytes of states in the host's memory, for each device."""
        return self.spread if self.hosted else 0

    @property
    def hosting(self) -> float:
        """Seconds of a step that states on the host take, but for copies beside layers: Adam, and
        what lies outside layers, fetched and sent back with nothing to hide behind."""
        if not self.hosted:
            return 0.0
        return self.adam + 2 * COPIED_BYTES * self.apart / self.ranks / HOST_BANDWIDTH

    @property
    def adam(self) -> float:
        """Seconds of the optimiser's step on the host."""
        return ADAM_BYTES * self.parameters / self.ranks / HOST_MEMORY

    def with_host(self) -> Needs:
        """The same with all states on the host. A layer's three copies, two of weights and one of
        gradients, go in two passes."""
        regions = tuple(
            attrs.evolve(r, passing=3 * COPIED_BYTES * r.parameters // (2 * self.ranks))
            for r in self.regions
        )
        return attrs.evolve(self, regions=regions, hosted=True)

    def working_in(self, parts: int, head_parts: int) -> int:
        # Scores, their gradient, and one more while one is made from the other.
        scores = self.scored // head_parts
        return max(self.working, self.held + -(-self.rowwise // parts), scores)
