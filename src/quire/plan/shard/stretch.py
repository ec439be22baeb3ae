"""Ops of a layer that treat each row by itself: what can be run in parts of a rank's rows.

    add → norm → linear → activation → linear → add
        becomes, for each part of the rows, the same; joined, and made again in backward

Side condition: every op maps rows to rows, with nothing cut or gathered, and all rows are those of
one sequence. Claim: an op's row i depends on row i of its spread operands alone, so that the rows
of parts laid end to end are those of the whole. Found through the relations, so that it holds for
whatever a layer does between its attentions, and never split across the border of a submodule,
whose hooks see whole calls.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import attrs
from torch import fx

from quire.capture.program import Program
from quire.plan.shard.plan import Placed, Step, Stretch

PARTS = (1, 2, 4, 8, 16, 32, 64)


@attrs.frozen(eq=False)
class Rowwise:
    """A stretch before the number of its parts is chosen."""

    module: str
    nodes: tuple[fx.Node, ...]
    size: int
    given: tuple[tuple[fx.Node, Placed], ...]
    made: tuple[tuple[fx.Node, Placed], ...]

    def on(
        self, rows: int, steps_of: Callable[[Sequence[fx.Node], int], tuple[Step, ...]]
    ) -> Stretch:
        """Run on `rows` rows at a time."""
        return Stretch(
            self.module,
            tuple(n.name for n in self.nodes),
            self.size,
            rows,
            steps_of(self.nodes, rows),
            tuple((n.name, at) for n, at in self.given),
            tuple((n.name, at) for n, at in self.made),
        )


def find_stretches(
    program: Program,
    steps: Mapping[fx.Node, Step],
    places: Mapping[fx.Node, Placed | None],
    inside: Mapping[fx.Node, str],
) -> tuple[Rowwise, ...]:
    """All of them, longest runs; `inside` gives each node's layer ("" for none)."""
    run: list[list[fx.Node]] = []
    found: list[Rowwise] = []
    where: tuple[str, int] | None = None
    for item in _items(program, steps, places, inside):
        sizes = {_size(program, n, steps, places) for n in item}
        size = sizes.pop() if len(sizes) == 1 else None
        here = (inside[item[0]], size) if size and inside[item[0]] else None
        if here != where or here is None:
            found += _made(program, places, run, where)
            run, where = [], here
        if here is not None:
            run.append(item)
    found += _made(program, places, run, where)
    return tuple(found)


def _items(
    program: Program,
    steps: Mapping[fx.Node, Step],
    places: Mapping[fx.Node, Placed | None],
    inside: Mapping[fx.Node, str],
) -> list[list[fx.Node]]:
    """Nodes in order; those that a submodule of their layer makes in one call stay together."""
    items: list[list[fx.Node]] = []
    last: tuple[str, str] | None = None
    for node in program.graph.nodes:
        if node not in steps and not (node.target is operator.getitem and node in places):
            continue
        child = _child(node, inside[node])
        key = (inside[node], child)
        if child and key == last:
            items[-1].append(node)
        else:
            items.append([node])
        last = key
    return items


def _child(node: fx.Node, module: str) -> str:
    """The module directly within `module` that makes `node`; "" if `module` itself does."""
    stack = [p for p, _ in node.meta.get("nn_module_stack", {}).values() if p]
    if module in stack:
        stack = stack[stack.index(module) + 1 :]
    names = (p.partition("@")[0] for p in stack)
    return next((n for n in names if n != module and n.startswith(f"{module}.")), "")


def _size(
    program: Program,
    node: fx.Node,
    steps: Mapping[fx.Node, Step],
    places: Mapping[fx.Node, Placed | None],
) -> int | None:
    """Rows of the sequence that all results of `node` are spread by; None if it is not rowwise."""
    if node not in steps:
        at = places.get(node)
        return at.size if at is not None and not at.routed else None
    step = steps[node]
    if step.kind != "local" or step.cuts or step.gathers or step.fills:
        return None
    sizes = {o.size if o is not None and not o.routed else None for o in step.out}
    operands = (places.get(n) for n in node.all_input_nodes)
    sizes |= {p.size if not p.routed else None for p in operands if p is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _made(
    program: Program,
    places: Mapping[fx.Node, Placed | None],
    run: Sequence[Sequence[fx.Node]],
    where: tuple[str, int] | None,
) -> list[Rowwise]:
    nodes = tuple(n for item in run for n in item)
    if where is None or len(nodes) < 2:
        return []
    own = set(nodes)
    given: dict[fx.Node, Placed] = {}
    made: dict[fx.Node, Placed] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source not in own and (at := places.get(source)) is not None:
                given[source] = at
        read = any(u in places and u not in own for u in node.users)
        if read or node in program.outputs:
            if len(program.infos[node]) != 1:
                return []
            at = places.get(node)
            assert at is not None
            made[node] = at
    if not given or not made:
        return []
    return [Rowwise(where[0], nodes, where[1], tuple(given.items()), tuple(made.items()))]
