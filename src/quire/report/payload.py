"""What the page's script draws from: plain lists and numbers, each name stored once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from quire.plan.plan import Moment, Plan, Region
from quire.report.timeline import Group, groups, positions, walk

# The readout under the timeline shows this many tensors of a moment; the rest is one sum.
TENSORS_SHOWN = 6


@runtime_checkable
class Outcome(Protocol):
    """A point of the trade-off curve; a `Plan` is one."""

    @property
    def peak_bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Names:
    """Strings by number, so that a name that 300 moments hold is written once."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def payload(
    plan: Plan,
    tradeoff: Iterable[Outcome | tuple[int, float]] = (),
    edges: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """The data of one page, ready for JSON."""
    names = Names()
    left, right = positions(plan.before, plan.after)
    shapes = region_shapes(plan)
    blocks = groups(plan)
    shown = {step for block in blocks for step in block.steps}
    data = {
        "baseline": plan.baseline_bytes,
        "peak": plan.peak_bytes,
        "budget": plan.budget,
        "baselineSeconds": plan.baseline_seconds,
        "seconds": plan.seconds,
        "before": _series(plan.before, left, names),
        "after": _series(plan.after, right, names),
        "regions": [_region(r, d, shapes, names) for r, d in walk(plan.regions)],
        "groups": _groups(blocks, plan, shapes, names),
        "edges": [[names(a), names(b)] for a, b in edges if a in shown and b in shown],
        "tradeoff": sorted(_pair(point) for point in tradeoff),
    }
    return {"names": list(names.index), **data}


def region_shapes(plan: Plan) -> dict[str, int]:
    """A number for each kind of region: regions alike share it, and so their colour."""
    shapes: dict[str, int] = {}
    for region, _ in walk(plan.regions):
        shapes.setdefault(region.like or region.name, len(shapes))
    return {r.name: shapes[r.like or r.name] for r, _ in walk(plan.regions)}


def _pair(point: Outcome | tuple[int, float]) -> tuple[int, float]:
    return (point.peak_bytes, point.seconds) if isinstance(point, Outcome) else (point[0], point[1])


def _series(moments: Sequence[Moment], edges: list[float], names: Names) -> dict[str, Any]:
    return {
        "x": [round(x, 3) for x in edges],
        "bytes": [m.nbytes for m in moments],
        "seconds": [float(f"{m.seconds:.4g}") for m in moments],
        "step": [names(m.step) for m in moments],
        "module": [names(m.module) for m in moments],
        "region": [names(m.region) for m in moments],
        "holds": [
            [[names(h.tensor), names(h.module), h.nbytes] for h in m.holds[:TENSORS_SHOWN]]
            for m in moments
        ],
        "count": [len(m.holds) for m in moments],
    }


def _region(region: Region, depth: int, shapes: dict[str, int], names: Names) -> dict[str, Any]:
    return {
        "name": region.name,
        "shape": shapes[region.name],
        "depth": depth,
        "label": region.label,
        "module": region.module,
        "parts": region.parts,
        "part": region.part,
        "size": region.size,
        "join": region.join,
        "steps": [names(step) for step in region.steps],
    }


def _groups(
    blocks: Sequence[Group], plan: Plan, shapes: dict[str, int], names: Names
) -> list[dict[str, Any]]:
    """The graph's columns; `like` is the first column with the same steps and regions."""
    inside: dict[str, list[int]] = {}
    for region, _ in walk(plan.regions):
        for step in region.steps:
            inside.setdefault(step, []).append(shapes[region.name])
    first: dict[tuple[Any, ...], int] = {}
    rows = []
    for i, block in enumerate(blocks):
        within = [_within(block.label, module) for module in block.modules]
        key = tuple(
            (_stem(step), module, *inside.get(step, ()))
            for step, module in zip(block.steps, within, strict=True)
        )
        rows.append(
            {
                "label": block.label,
                "like": first.setdefault(key, i),
                "steps": [names(step) for step in block.steps],
                "modules": [names(module) for module in block.modules],
                "within": within,
            }
        )
    return rows


def _within(label: str, module: str) -> str:
    """The part of a module's path below its block: `attn.c_attn` of `transformer.h.3.…`."""
    _, found, rest = f"{module}.".partition(f"{label}.")
    return rest.rstrip(".") if found else module.rsplit(".", 1)[-1]


def _stem(step: str) -> str:
    """`addmm_17` → `addmm`: equal layers differ in the numbers of their steps only."""
    return re.sub(r"(_\d+)+$", "", step)
