"""Which tensor of the graph a buffer holds.

The node that a buffer was made for is a hint only: what is written is compared with the values of
that node and of those it was computed from, in terms of the tensors already known to be held.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from quire.capture.program import Operand, Program
from quire.verify import term as t
from quire.verify.decide import Premises
from quire.verify.kernel.instance import shows
from quire.verify.kernel.tables import Tables
from quire.verify.original import Original
from quire.verify.poly import Poly, poly, product, single
from quire.verify.sizes import Sizes
from quire.verify.term.core import RANGES
from quire.verify.value import NoMeaning, NotShown, Value, build, number
from quire.verify.views import reshape, through

TRIED = 24
"""Nodes looked at for one buffer, at most."""

FAR = 160
"""Nodes between one and the tensors known, from which on it is not looked at."""


class Graph:
    """The captured program, and the nodes whose tensors are known to be held."""

    def __init__(self, program: Program, sizes: Sizes, tables: Tables) -> None:
        self.program, self.sizes, self.tables = program, sizes, tables
        self.original = Original(program, sizes)
        self.given: dict[fx.Node, Value] = {}
        self._memo: dict[Any, Any] = {}
        self.indices: dict[fx.Node, int] = {}
        """Nodes that a tensor is read at, and the sizes that they stay below."""
        self.by_target = {(i.kind == "user", i.target): i.node for i in program.inputs}
        for item in program.inputs:
            state = program.state.get(item.target)
            if item.kind == "constant" and state is not None and state.numel() == 1:
                info = program.info(item.node)
                value = _literal(state.item())
                self.given[item.node] = build(
                    [sizes(s) for s in info.shape], info.dtype, lambda _, v=value: v
                )

    def input(self, target: str, user: bool) -> fx.Node:
        found = self.by_target.get((user, target))
        if found is None:
            raise NoMeaning(f"the program has no {'input' if user else 'weight'} {target!r}")
        return found

    def value(self, node: fx.Node) -> Any:
        return self.original.value(node, self.given, self._memo)

    def hold(self, node: fx.Node) -> Value:
        """`node`, from now on known by name."""
        if node not in self.given:
            self._keep_range(node)
            self.given[node] = self.original.cut(node)
            self._memo = {}
        return self.given[node]

    def far(self, node: fx.Node) -> bool:
        """Whether there is much between `node` and the tensors known."""
        seen: set[fx.Node] = set()
        stack = [node]
        while stack and len(seen) < FAR:
            top = stack.pop()
            if top in seen or top in self.given or top in self.original.inputs:
                continue
            seen.add(top)
            stack += self.original.needs(top)
        return bool(stack)

    def _keep_range(self, node: fx.Node) -> None:
        """Places in a row stay known to be within it."""
        if self.program.info(node).dtype.is_floating_point or node in self.original.inputs:
            return
        value = self.value(node)
        x = single(value.scalar) if isinstance(value.scalar, Poly) else None
        if x is not None and len(x.lower) == len(x.upper) == 1:
            low, high = x.lower[0].constant, x.upper[0].constant
            if low is not None and high is not None:
                RANGES[node.name] = (low, high)

    def first_of(self, node: fx.Node) -> tuple[fx.Node, int]:
        """The earliest node that is known to be the same tensor as `node`, and how far back."""
        back = 0
        while node not in self.original.inputs and node not in self.given:
            needs = self.original.needs(node)
            if len(needs) != 1 or needs[0] in self.original.inputs or needs[0] in self.given:
                break
            one, other = self.value(node), self.value(needs[0])
            same = isinstance(other, Value) and other.shape == one.shape
            if not same or other.scalar is not one.scalar:
                break
            node, back = needs[0], back + 1
        return node, back

    def in_range(self, p: Poly) -> Premises:
        """What is known of `p` if the original reads a tensor at it (axiom `in-range`)."""
        for node, size in self.indices.items():
            known = self.value(node)
            if shows(known.scalar, known.shape, p):
                return (">=", p), (">=", size - 1 - p)
        return ()

    # --- hints -------------------------------------------------------------------------------

    def hints(self, role: str, name: str, target: str) -> Sequence[fx.Node]:
        """Nodes that a buffer may hold, the likeliest first."""
        if role == "input":
            after = self.program.writes.get(self.input(target, True))
            return [] if after is None else [after]
        first: list[fx.Node] = []
        if role == "output" and name.removeprefix("out").isdigit():
            found = self.program.outputs[int(name.removeprefix("out"))]
            if isinstance(found, fx.Node):
                first.append(found)
        word = self.tables.origin.get(name.removesuffix("p"), self.tables.origin.get(name, ""))
        hint = self.original.nodes.get(word.split(" ")[0])
        first += [] if hint is None else [hint]
        return self._back(first)

    def _back(self, starts: Sequence[fx.Node]) -> list[fx.Node]:
        found: dict[fx.Node, None] = {}
        queue = list(starts)
        while queue and len(found) < TRIED:
            node = queue.pop(0)
            if node in found or node in self.original.inputs:
                continue
            if node.target is operator.getitem or node in self.program.ops:
                found[node] = None
                queue += [u for u in node.users if u.target is operator.getitem]
                queue += self.original.needs(node)
        return list(found)

    def seen_as(self, node: fx.Node, shape: tuple[Poly, ...], kind: str) -> Value | None:
        """The tensor of `node` in another shape of as many elements; None if there is none."""
        infos = self.program.infos.get(node)
        if not infos or self.far(node):
            return None
        if product(self.sizes(s) for s in infos[0].shape) is not product(shape):
            return None
        try:
            value = self.value(node)
            if not isinstance(value, Value) or value.kind != kind:
                return None
            return in_shape(value, shape)
        except (NoMeaning, NotShown):
            return None


def in_shape(value: Value, shape: tuple[Poly, ...]) -> Value:
    if value.shape == shape:
        return value
    return through(value, reshape(value.shape, shape))


def _literal(value: Any) -> Any:
    if isinstance(value, bool):
        return t.TRUE if value else t.FALSE
    return poly(value) if isinstance(value, int) else number(value)


def assume_ranges(graph: Graph) -> None:
    """Bounds of the inputs that index a tensor: the original fails outside of them (axiom
    `in-range`)."""
    found: dict[str, tuple[int, int]] = {}
    for op in graph.program.ops.values():
        for tensor, dim, index, wraps in _indexed(op):
            size = graph.sizes(tensor.shape[dim]).constant
            if size is None or index.info.dtype.is_floating_point:
                continue
            name = _source(graph, index.node)
            if name is None:
                if not wraps:
                    _remember(graph, index.node, size)
                continue
            low, high = found.get(name, (-size, size - 1))
            found[name] = (max(low, -size if wraps else 0), min(high, size - 1))
    RANGES.update(found)


def _remember(graph: Graph, node: fx.Node, size: int) -> None:
    """An index that is computed from several inputs."""
    if graph.far(node):
        return
    try:
        value = graph.value(node)
    except (NoMeaning, NotShown):
        return
    if isinstance(value, Value) and isinstance(value.scalar, Poly):
        graph.indices[node] = min(size, graph.indices.get(node, size))


def _indexed(op: Any) -> Iterable[tuple[Operand, int, Operand, bool]]:
    """Tensor, dim, index, and whether negative indices count from the end."""
    name = op.target._schema.name.split("::")[1]
    if name == "embedding":
        yield op["weight"], 0, op["indices"], False
    elif name in ("gather", "scatter", "index_select", "scatter_add"):
        yield op["self"], op["dim"], op["index"], False
    elif name == "index":
        for d, index in enumerate(op["indices"]):
            if isinstance(index, Operand):
                yield op["self"], d, index, True


_SAME = {
    "unsqueeze", "expand", "view", "reshape", "squeeze", "clone", "_to_copy", "alias", "detach",
    "contiguous", "lift_fresh_copy", "permute", "transpose", "t",
}  # fmt: skip
"""Ops that show elements of their operand, each of them unless the result is empty."""


def _source(graph: Graph, node: fx.Node) -> str | None:
    """The input or weight that an index shows the elements of, each of them."""
    while node not in graph.original.inputs:
        op = graph.program.ops.get(node)
        if op is None or op.target._schema.name.split("::")[1] not in _SAME:
            return None
        node = op.operands[0].node
    return graph.original.inputs[node]
