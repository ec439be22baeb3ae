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
from quire.verify.original import Original
from quire.verify.sizes import Sizes
from quire.verify.steps import Step
from quire.verify.structure import key_of, walk
from quire.verify.value import NoMeaning, NotShown, Value


class Rewritten:
    """`run` gives a step for each comparison that took one, and one for each output."""

    def __init__(self, captured: Program, planned: Program, sizes: Sizes) -> None:
        self.captured, self.planned = Original(captured, sizes), Original(planned, sizes)
        self.twin: dict[fx.Node, fx.Node] = {}
        """Node of the planned program → the captured one's of equal value."""
        self.left: dict[fx.Node, Value] = {}
        self.right: dict[fx.Node, Value] = {}
        self.calls: dict[Any, fx.Node] = {}
        self.proved: set[Any] = set()
        self.steps: list[Step] = []

    def run(self) -> list[Step]:
        self._inputs()
        order = {n: k for k, n in enumerate(self.captured.program.graph.nodes)}
        for node in order:
            if (key := self._call(self.captured, node, {})) is not None:
                self.calls.setdefault(key, node)
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
        self.twin[node] = other
        if value is not None:
            self.right[node] = self.left[other] = value

    def _call(self, graph: Original, node: fx.Node, twin: Any) -> Any:
        """What a node computes: equal for calls of one op on the same tensors of the captured
        program; None if an operand is not known there."""
        if node.target is operator.getitem:
            source = twin.get(node.args[0], node.args[0])
            return None if twin and source is node.args[0] else ("item", source, node.args[1])
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
        other = self.captured.nodes.get(node.name)
        if other is None or self._infos(self.captured, other) != self._infos(self.planned, node):
            return
        if len(self._infos(self.planned, node)) != 1:
            return
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
