"""Where the steps of two timelines stand on one axis, and how steps group by module."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

import attrs

from quire.plan.plan import Moment, Plan, Region


def positions(before: Sequence[Moment], after: Sequence[Moment]) -> tuple[list[float], list[float]]:
    """Left edges of the moments, one unit a step of `before`, with the end of the last appended.

    A step that occurs in both stands at the same place in both, so that a layer lies over
    itself; what stands between two such steps is spread evenly. Steps whose order changed cannot
    all be kept in place: the longest run that keeps its order is.
    """
    if not before:
        return [0.0], [float(i) for i in range(len(after) + 1)]
    place = {moment.step: i for i, moment in reversed(list(enumerate(before)))}
    found = [(i, place[m.step]) for i, m in enumerate(after) if m.step in place]
    anchors = [(0, 0), *_increasing(found), (len(after), len(before))]
    edges = [0.0] * (len(after) + 1)
    for (a, x), (b, y) in pairwise(anchors):
        for i in range(a, b + 1):
            edges[i] = x + (y - x) * (i - a) / (b - a) if b > a else float(y)
    # The first step has no anchor before it: two may then start at 0, and share the room.
    return [float(i) for i in range(len(before) + 1)], edges


def _increasing(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest subsequence that rises strictly in the second entry (patience sorting)."""
    tails: list[int] = []
    last: list[int] = []
    back = [-1] * len(pairs)
    for k, (_, value) in enumerate(pairs):
        at = bisect_left(tails, value)
        back[k] = last[at - 1] if at else -1
        tails[at : at + 1], last[at : at + 1] = [value], [k]
    chain, k = [], last[-1] if last else -1
    while k >= 0:
        chain.append(pairs[k])
        k = back[k]
    # The ends are anchored anyway; a second anchor there would leave a step no width.
    return [pair for pair in reversed(chain) if pair[0] > 0 and pair[1] > 0]


def walk(regions: Sequence[Region], depth: int = 0) -> Iterator[tuple[Region, int]]:
    """Each region with its depth, a region before those within it."""
    for region in regions:
        yield region, depth
        yield from walk(region.inner, depth + 1)


def unchanged(plan: Plan) -> bool:
    """Whether the plan leaves the model as it is."""
    return not plan.regions and not plan.rewrites and plan.peak_bytes == plan.baseline_bytes


@attrs.frozen
class Group:
    """Steps in a row that belong to one block of the model, such as a layer."""

    label: str
    steps: tuple[str, ...]
    modules: tuple[str, ...]


def groups(plan: Plan) -> tuple[Group, ...]:
    """The program's steps in order, cut where the block of the model changes.

    A block is a module path up to its first number (`transformer.h.0`); what has none
    (embeddings, the head) joins its neighbours. A prefix all blocks share is dropped.
    """
    modules = {m.step: m.module for m in (*plan.after, *plan.before)}
    order = plan.order or tuple(m.step for m in plan.before)
    runs: list[tuple[str, list[str]]] = []
    for step in order:
        # A step that names no module (a view, a constant) stays with the block before it.
        block = _block(modules.get(step, "")) if modules.get(step) else runs[-1][0] if runs else ""
        if runs and runs[-1][0] == block:
            runs[-1][1].append(step)
        else:
            runs.append((block, [step]))
    prefix = _shared([block for block, _ in runs if block])
    return tuple(
        Group(
            _label(block, [modules.get(s, "") for s in steps], prefix),
            tuple(steps),
            tuple(modules.get(s, "") for s in steps),
        )
        for block, steps in runs
    )


def _block(module: str) -> str:
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""


def _shared(blocks: list[str]) -> str:
    heads = [block.split(".")[:-1] for block in blocks]
    # The last word of the prefix says what is counted (`h`), so it stays.
    common = 0
    while heads and all(len(h) > common + 1 and h[common] == heads[0][common] for h in heads):
        common += 1
    return ".".join(heads[0][:common]) + "." if common else ""


def _label(block: str, modules: list[str], prefix: str) -> str:
    if block:
        return block.removeprefix(prefix)
    # The module that holds all blocks names nothing.
    leaves = [m.removeprefix(prefix) for m in modules if m and f"{m}." != prefix]
    names = list(dict.fromkeys(leaf.rsplit(".", 1)[-1] for leaf in leaves))
    return " · ".join(names[:3]) + (" …" if len(names) > 3 else "") or "(root)"
