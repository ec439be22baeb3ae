"""The planned program against the captured one: that the rewrites changed no value.

Both graphs are walked together. A call of the same op on tensors already known to be equal makes
equal tensors: that needs no proof. Where a rewrite took several calls for one, the values are
compared at the next node that has its name in both graphs, in terms of the tensors known before.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from quire.capture.program import Program
from quire.verify.compare import closed, differ
from quire.verify.meaning import VIEWS
from quire.verify.original import Original
from quire.verify.sizes import Sizes
from quire.verify.steps import Step
from quire.verify.structure import key_of, walk
from quire.verify.value import NoMeaning, NotShown, Value

PLAIN = {
    "where", "masked_fill", "_to_copy", "clone", "bitwise_and", "logical_and", "bitwise_or",
    "logical_or", "bitwise_not", "logical_not", "eq", "ne", "lt", "le", "gt", "ge",
}  # fmt: skip
"""Ops that pick, compare and convert: a mask is made of these."""

HINTS = 4
"""Captured nodes that a planned one is compared with at most."""


class Rewritten:
    """`run` gives a step for each comparison that took one, and one for each output."""

    def __init__(self, captured: Program, planned: Program, sizes: Sizes) -> None:
        self.captured, self.planned = Original(captured, sizes), Original(planned, sizes)
        self.twin: dict[fx.Node, fx.Node] = {}
        """Node of the planned program → the captured one's of equal value."""
        self.left: dict[fx.Node, Value] = {}
        self.right: dict[fx.Node, Value] = {}
        self.calls: dict[Any, fx.Node] = {}
        self.first: dict[fx.Node, fx.Node] = {}
        """Node of the captured program → the first that computes the same."""
        self.proved: set[Any] = set()
        self.steps: list[Step] = []

    def run(self) -> list[Step]:
        self._inputs()
        self.hints = self._hints()
        order = {n: k for k, n in enumerate(self.captured.program.graph.nodes)}
        for node in order:
            if (key := self._call(self.captured, node, self.first)) is not None:
                self.first[node] = self.calls.setdefault(key, node)
        for node in self.planned.program.graph.nodes:
            if node in self.planned.program.ops or node.target is operator.getitem:
                self._match(node)
        self._outputs()
        return self.steps

    def _inputs(self) -> None:
        by_name = {name: node for node, name in self.captured.inputs.items()}
        for node, name in self.planned.inputs.items():
            if name in by_name:
                self._known(node, by_name[name], self.captured.cut(by_name[name]))

    def _known(self, node: fx.Node, other: fx.Node, value: Value | None) -> None:
        """Note that two nodes are equal. What is cheap to say in terms of its operands is never
        known by name, as other nodes may say it in other words."""
        self.twin[node] = other = self.first.get(other, other)
        made = other.args[0] if other.target is operator.getitem else other
        op = self.captured.program.ops.get(made)  # type: ignore[arg-type]
        name = op.target._schema.name.split("::")[1] if op is not None else ""
        if value is not None and name not in VIEWS and name not in PLAIN:
            self.right[node] = self.left[other] = value

    def _call(self, graph: Original, node: fx.Node, twin: Any) -> Any:
        """What a node computes: equal for calls of one op on the same tensors of the captured
        program; None if an operand is not known there."""
        if node.target is operator.getitem:
            source = twin.get(node.args[0])
            if source is None and graph is self.planned:
                return None
            return "item", source or node.args[0], node.args[1]
        op = graph.program.ops.get(node)
        if op is None:
            return None
        if graph is self.planned and any(o.node not in twin for o in op.operands):
            return None
        given = {o.node: twin.get(o.node, o.node) for o in op.operands}
        return str(op.target), key_of(op.arguments, given)

    def _match(self, node: fx.Node) -> None:
        key = self._call(self.planned, node, self.twin)
        other = None if key is None else self.calls.get(key)
        if other is not None:
            single = len(self.captured.program.infos.get(other, ())) == 1
            value = self._own(other) if single or other.target is operator.getitem else None
            self._known(node, other, value)
            return
        infos = self._infos(self.planned, node)
        for other in self.hints.get(node, ()):
            if len(infos) == 1 and self._infos(self.captured, other) == infos:
                self._compare(node, other)
                if node in self.twin:
                    return

    def _compare(self, node: fx.Node, other: fx.Node) -> None:
        found = self._structure(node, other)
        if found in self.proved:
            self._known(node, other, self._own(other))
            return
        why, want = self._differ(node, other)
        self.steps.append(Step(-1, f"rewritten {node.name}", "differs" if why else "equal", why))
        if not why:
            self._known(node, other, want if want and closed(want.scalar) else self._own(other))
            if want and not closed(want.scalar):
                self.proved.add(found)

    def _hints(self) -> dict[fx.Node, list[fx.Node]]:
        """The captured nodes that a planned one may stand for: that of its name, and what is read
        where it is read, by calls of one op that may stand for each other."""
        hints: dict[fx.Node, list[fx.Node]] = {}

        def put(node: fx.Node, other: Any) -> None:
            known = hints.setdefault(node, [])
            if isinstance(other, fx.Node) and other not in known and len(known) < HINTS:
                known.append(other)

        for k, got in enumerate(self.planned.program.outputs):
            if isinstance(got, fx.Node):
                put(got, self.captured.program.outputs[k])
        for node in reversed(self.planned.program.graph.nodes):
            known = hints.setdefault(node, [])
            if (named := self.captured.nodes.get(node.name)) is not None:
                known[:] = [named, *(n for n in known if n is not named)]
            op = self.planned.program.ops.get(node)
            for other in known:
                like = self.captured.program.ops.get(other)
                if op and like and op.target is like.target:
                    for a, b in zip(op.operands, like.operands, strict=False):
                        put(a.node, b.node)
        return hints

    def _own(self, node: fx.Node) -> Value:
        """The captured tensor, known by name; one that indices alone decide, by what it is."""
        if node in self.left:
            return self.left[node]
        op = self.captured.program.ops.get(node)
        if op is not None and all(o.node in self.left and closed(self.left[o.node].scalar)
                                  for o in op.operands):  # fmt: skip
            try:
                value = self.captured.value(node, self.left, {})
            except (NoMeaning, NotShown):
                return self.captured.cut(node)
            if isinstance(value, Value) and closed(value.scalar):
                return value
        return self.captured.cut(node)

    def _infos(self, graph: Original, node: fx.Node) -> Any:
        return [(str(i.shape), i.dtype) for i in graph.program.infos.get(node, ())]

    def _structure(self, node: fx.Node, other: fx.Node) -> Any:
        order: dict[str, int] = {}
        rows: list[Any] = []
        local: dict[Any, int] = {}
        walk(node, self.planned, self.right, order, local, rows, number=True)
        cut = len(rows)
        walk(other, self.captured, self.left, order, local, rows, number=True)
        return tuple(rows), cut, local[node], local[other]

    def _differ(self, node: fx.Node, other: fx.Node) -> tuple[str, Value | None]:
        try:
            want = self.captured.value(other, self.left, {})
            return differ(self.planned.value(node, self.right, {}), want), want
        except (NoMeaning, NotShown) as error:
            return f"{type(error).__name__}: {error}", None

    def _outputs(self) -> None:
        pairs = zip(self.planned.program.outputs, self.captured.program.outputs, strict=True)
        for k, (got, want) in enumerate(pairs):
            label = f"rewritten output {k}"
            if not isinstance(want, fx.Node) or not isinstance(got, fx.Node):
                why = "" if got == want else f"{got}, and not {want}"
            elif self.twin.get(got) is want:
                why = ""
            else:
                why, _ = self._differ(got, want)
            self.steps.append(Step(0, label, "differs" if why else "equal", why))
