"""A sum carried out part by part in the graph itself, so that its parts can be split further.

    y = x + o(f(h))   →   y₁ = x + o(f(h), part 1),  y₂ = y₁ + o(f(h), part 2),  …

Side conditions: `Spread` takes every step of `f` in, and nothing else reads what these make. Claim:
equal, but for the order in which the sum is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import fx

from quire.capture.program import Op, Program
from quire.flow.propagate import Spread, cut_for, reads_of
from quire.flow.relation import Axis, Part, Span
from quire.rewrite.draft import Draft, Refused

aten: Any = torch.ops.aten


def unroll(program: Program, spreads: Sequence[Spread]) -> Program:
    """`program` with the sum of each spread's seed taken unit by unit.

    Raises Refused if torch rejects a part.
    """
    draft = Draft(program)
    for spread in spreads:
        _unroll(draft, spread)
    return draft.finish()


def _unroll(draft: Draft, spread: Spread) -> None:
    seed = spread.seed
    reader = _added_to(draft.program, seed)
    old = draft.new[reader or seed]
    total: fx.Node | None = None
    if reader is not None:
        total = next(
            draft.new[o.node] for o in draft.program.ops[reader].operands if o.node != seed
        )
    for unit in range(int(spread.size)):
        part = Units(draft, spread, range(unit, unit + 1), old).step(seed)
        total = part if total is None else draft.call(aten.add.Tensor, (total, part), at=old)
    assert total is not None
    draft.replace(old, total)
    draft.new[reader or seed] = total


def _added_to(program: Program, seed: fx.Node) -> fx.Node | None:
    """The addition that alone reads `seed`, and adds a tensor of the same facts to it."""
    users = list(seed.users)
    op = program.ops.get(users[0]) if len(users) == 1 else None
    if op is None or op.target is not aten.add.Tensor or op["alpha"] != 1:
        return None
    infos = [o.info for o in op.operands]
    return op.node if len(infos) == 2 and infos[0] == infos[1] == op.out else None


class Units:
    """The calls that make `units` of a spread's seed, before the node `at`. `instead` are nodes
    to read for others of the program that the spread does not make."""

    def __init__(
        self,
        draft: Draft,
        spread: Spread,
        units: range,
        at: fx.Node,
        instead: Mapping[fx.Node, fx.Node] | None = None,
    ) -> None:
        self.draft, self.spread, self.units, self.at = draft, spread, units, at
        self.instead = dict(instead or {})
        self.made: dict[Any, fx.Node] = {}

    def step(self, step: fx.Node) -> fx.Node:
        if step not in self.made:
            storage, cut = self.spread.storage, self.spread.cuts[step]
            axis = storage.flows[step].axes[cut.axis]
            self.made[step] = self._call(storage.program.ops[step], axis, list(reads_of(axis, cut)))
        return self.made[step]

    def _call(
        self, op: Op, axis: Axis, needs: list[Span | None], own: Span | None = None
    ) -> fx.Node:
        """The part of `op` that reads `needs`; `own` is the part of its output that is asked."""
        storage = self.spread.storage
        if own is None and axis.writes[0] is not None:
            cut = self.spread.cuts[op.node]
            own = Span(axis.writes[0].dim, scale=axis.writes[0].scale * cut.scale)
        shape = [
            self._length(own) if own is not None and d == own.dim else s
            for d, s in enumerate(op.out.shape)
        ]
        changed: dict[str, Any] = {}
        first = axis.init is not None and self.units.start == 0
        if axis.edit is not None and not first:
            changed |= axis.edit(Part(op, self.units.start, self.units.stop, (tuple(shape),)))
        elif op.is_view and isinstance(op.get("size"), list):
            changed["size"] = shape
        count = iter(range(len(op.operands)))

        def bound(value: Any) -> Any:
            if isinstance(value, fx.Node):
                if value in storage.program.sizes:
                    return self.draft.new[value]
                return self.read(value, needs[next(count)])
            if isinstance(value, list | tuple):
                return type(value)(bound(v) for v in value)
            return value

        args, kwargs = [], {}
        for position, argument in enumerate(op.target._schema.arguments):
            if position < len(op.node.args):
                value = bound(op.node.args[position])
            elif argument.name in op.node.kwargs:
                value = bound(op.node.kwargs[argument.name])
            elif argument.name in changed or argument.kwarg_only:
                continue
            else:
                value = argument.default_value
            value = changed.get(argument.name, value) if argument.name in changed else value
            if argument.name == "size" and isinstance(value, list):
                value = self.draft.size_arguments(value)
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return self.draft.call(op.target, args, kwargs, at=self.at)

    def _length(self, need: Span) -> Any:
        if need.lo != 0 or need.hi != 0 or need.outer != 1:
            raise Refused(f"parts of {need}")
        return need.scale * len(self.units)

    def _outside(self, node: fx.Node) -> fx.Node:
        return self.instead[node] if node in self.instead else self.draft.new[node]

    def read(self, node: fx.Node, need: Span | None) -> fx.Node:
        """What a call of the unit reads of `node`: `need` of it, or all."""
        storage = self.spread.storage
        base = storage.base[node]
        if need is None:
            return self._outside(node)
        if base not in self.spread.cuts:
            length = self._length(need)
            start = need.scale * self.units.start
            key = (node, need.dim, start)
            if key not in self.made:
                args = (self._outside(node), need.dim, start, start + length)
                self.made[key] = self.draft.call(aten.slice.Tensor, args, at=self.at)
            return self.made[key]
        if node is base:
            return self.step(node)
        need = attrs.evolve(need, fill=None)
        key = (node, need)
        if key not in self.made:
            cut = cut_for(storage.flows[node], 0, need)
            if cut is None:
                raise Refused(f"{need} of {node}")
            axis = storage.flows[node].axes[cut.axis]
            op = storage.program.ops[node]
            self.made[key] = self._call(op, axis, list(reads_of(axis, cut)), need)
        return self.made[key]
