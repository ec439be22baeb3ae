"""Plans: frozen, hashable, and JSON both ways. A plan says what to split and how to join it;
it holds nodes by name and no tensors.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs


@attrs.frozen
class Placed:
    """Where the part that `step` makes is stored: `out` (straight in the region's output), `slot`
    (buffer number `slot` of the loop, reused), `fresh` (a new tensor for each part), or `into`
    (nowhere: the addition that reads it is done with it).
    `escapes`: read after the region, or returned."""

    step: str
    kind: Literal["out", "slot", "fresh", "into"]
    slot: int = -1
    escapes: bool = False


@attrs.frozen
class Region:
    """Nodes that run in one loop over parts of an axis.

    `steps` are the names of the nodes within the loop, in order of execution. The loop runs over
    the units of axis `axis` (its index in the flow) of the op `seed`; `size` is their number at
    the planned lengths, `part` the largest part to use, in units. `reuse` pairs an output with
    the dying input it is written into. `inner` are regions within one part. `like` is the name
    of the first region of the same structure (its own, if it is the first).
    """

    name: str
    seed: str
    axis: int
    steps: tuple[str, ...]
    size: int
    part: int
    label: str = ""
    module: str = ""
    join: str = "concat"
    places: tuple[Placed, ...] = attrs.field(default=(), repr=False)
    reuse: tuple[tuple[str, str], ...] = ()
    inner: tuple[Region, ...] = ()
    like: str = ""
    peak_bytes: int = 0
    seconds: float = 0.0
    unsplit_bytes: int = 0
    unsplit_seconds: float = 0.0

    @property
    def parts(self) -> int:
        return -(-self.size // self.part)


@attrs.frozen
class Holding:
    """A tensor that is live at some moment: its name, the module that makes it, its bytes."""

    tensor: str
    module: str
    nbytes: int


@attrs.frozen
class Moment:
    """The tensors live while one step runs, largest first. `nbytes` is their sum plus the step's
    workspace; `seconds` the predicted time of the step."""

    step: str
    module: str
    nbytes: int
    seconds: float
    holds: tuple[Holding, ...] = ()
    region: str = ""


@attrs.frozen
class Plan:
    """What `quire.chunk` decided, with the bytes and seconds it predicts.

    Bytes count what a call allocates above weights and inputs, outputs included. `peak_bytes` is
    a bound: the measured peak does not exceed it.
    """

    program: str
    budget: int | None
    baseline_bytes: int
    peak_bytes: int
    baseline_seconds: float
    seconds: float
    order: tuple[str, ...]
    regions: tuple[Region, ...]
    overwrites: tuple[tuple[str, str], ...] = ()
    """Steps run whole that are written over an operand read last by them: (step, operand)."""
    lengths: tuple[tuple[str, int], ...] = ()
    rewrites: tuple[str, ...] = ()
    before: tuple[Moment, ...] = attrs.field(default=(), repr=False)
    after: tuple[Moment, ...] = attrs.field(default=(), repr=False)

    @property
    def predicted_slowdown(self) -> float:
        """Predicted time over the baseline's predicted time; below 1 the plan is faster."""
        return self.seconds / self.baseline_seconds if self.baseline_seconds else 1.0

    def to_json(self, *, indent: int | None = None) -> str:
        return json.dumps(attrs.asdict(self), indent=indent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        return _plan(json.loads(text))

    def explain(self) -> str:
        """The plan as text: what is split, into how many parts, and what it saves."""
        mib = 1 << 20
        budget = "none" if self.budget is None else f"{self.budget / mib:.1f} MiB"
        rows = [
            f"peak {self.peak_bytes / mib:.1f} MiB, baseline {self.baseline_bytes / mib:.1f} MiB "
            f"({self.peak_bytes / max(self.baseline_bytes, 1) - 1:+.0%}), budget {budget}; "
            f"predicted time {self.seconds:.3g} s, baseline {self.baseline_seconds:.3g} s"
        ]
        if not self.regions and not self.rewrites:
            rows.append("nothing to do: the model runs as it is")
        rows += [f"rewrite: {text}" for text in self.rewrites]
        for region in self.regions:
            rows += _explain(region, "")
        return "\n".join(rows)


def _explain(region: Region, indent: str) -> list[str]:
    text = (
        f"{indent}{region.name}: {region.label}, {region.size} in {region.parts} parts of "
        f"{region.part} ({region.join}), {len(region.steps)} ops at {region.module or '(root)'}"
    )
    return [text, *(row for inner in region.inner for row in _explain(inner, indent + "  "))]


def _region(data: dict[str, Any]) -> Region:
    inner = tuple(_region(r) for r in data.pop("inner"))
    steps, reuse = tuple(data.pop("steps")), tuple(tuple(p) for p in data.pop("reuse"))
    places = tuple(Placed(**p) for p in data.pop("places"))
    return Region(inner=inner, places=places, steps=steps, reuse=reuse, **data)


def _moment(data: dict[str, Any]) -> Moment:
    return Moment(holds=tuple(Holding(**h) for h in data.pop("holds")), **data)


def _plan(data: dict[str, Any]) -> Plan:
    return Plan(
        regions=tuple(_region(r) for r in data.pop("regions")),
        before=tuple(_moment(m) for m in data.pop("before")),
        after=tuple(_moment(m) for m in data.pop("after")),
        order=tuple(data.pop("order")),
        overwrites=tuple(tuple(p) for p in data.pop("overwrites")),
        lengths=tuple(tuple(p) for p in data.pop("lengths")),
        rewrites=tuple(data.pop("rewrites")),
        **data,
    )
