"""Marks of steps that are equal where steps are alike, so that equal layers are planned once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from quire.capture.program import Operand, TensorInfo
from quire.cost.liveness import Liveness
from quire.flow.propagate import Storage


def signatures(
    storage: Storage,
    infos: Mapping[fx.Node, tuple[TensorInfo, ...]],
    order: Sequence[fx.Node],
    live: Liveness,
    window: int,
) -> list[int]:
    """A number per step: equal for steps of the same op, sizes, and operands at the same distance
    that die at the same distance.

    No region is longer than `window` steps: what was made that long ago, or is read that much
    later, is only "before" and "after". So layers that share a rotary table are equal.
    """
    index = {step: k for k, step in enumerate(order)}
    known: dict[Any, int] = {}
    marks = []

    def plain(value: Any) -> Any:
        if isinstance(value, Operand):
            return "tensor"
        if isinstance(value, list | tuple):
            return tuple(plain(v) for v in value)
        return str(value)

    def source(node: fx.Node, k: int) -> Any:
        chain: list[Any] = []
        while storage.base[node] is not node:
            maker, output = storage.written(node)
            if storage.base[node] is maker:
                chain.append(output)
                node = maker
                break
            op = storage.program.ops[maker]
            chain.append((op.target, output, tuple(plain(v) for v in op.arguments.values())))
            node = op.operands[0].node
        if node not in index:
            # Views of an input are made outside every region: what they are is enough.
            chain.clear()
        return (times(node, k) if node in index else "input"), tuple(chain), infos[node]

    def times(node: fx.Node, k: int) -> tuple[Any, ...]:
        """How long before step `k` a tensor was made, and how long after it is read last."""
        age, rest = k - index[node], live.last[node] - k
        if live.last[node] == len(order):
            return (age if age < window else "before"), "returned"
        if rest >= window:
            return (age if age < window else "before"), "after"
        return age, rest

    for k, step in enumerate(order):
        op = storage.program.ops[step]
        key = (
            op.target,
            tuple(plain(v) for v in op.arguments.values()),
            tuple(source(o.node, k) for o in op.operands),
            infos[step],
            times(step, k),
        )
        marks.append(known.setdefault(key, len(known)))
    return marks
