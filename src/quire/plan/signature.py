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
) -> list[int]:
    """A number per step: equal for steps of the same op, sizes, and operands at the same distance
    that die at the same distance."""
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
        where = (k - index[node], live.last[node] - k) if node in index else ("input",)
        if node in index and live.last[node] == len(order):
            where = (k - index[node], "returned")
        return where, tuple(chain), infos[node]

    for k, step in enumerate(order):
        op = storage.program.ops[step]
        last = "returned" if live.last[step] == len(order) else live.last[step] - k
        key = (
            op.target,
            tuple(plain(v) for v in op.arguments.values()),
            tuple(source(o.node, k) for o in op.operands),
            infos[step],
            last,
        )
        marks.append(known.setdefault(key, len(known)))
    return marks
