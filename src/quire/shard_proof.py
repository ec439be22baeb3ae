"""A sharded program and its plan → certificate: what the prover is given, and by whom."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence

from torch import fx

from quire.apply.shard_code import Function
from quire.capture.program import Program
from quire.plan import layout
from quire.plan.layout import Layout
from quire.plan.shard.plan import Placed, ShardPlan
from quire.runtime import (
    block_attention,
    collectives,
    draws,
    ring_attention,
    row_parts,
    sharded,
    sharded_attention,
)
from quire.verify.certificate import Certificate
from quire.verify.claims import RefutedError, UnprovedError
from quire.verify.shard.order import Order, Place
from quire.verify.shard.task import Hint, Hooks, Range, Source, Task

_FILES = (
    layout,
    collectives,
    row_parts,
    block_attention,
    ring_attention,
    draws,
    sharded_attention,
)


def hooks(*, reduce_gradients: bool = True) -> Hooks:
    """The runtime's own text, and its table of rows."""
    texts = {module.__name__: inspect.getsource(module) for module in _FILES}
    own = (sharded._size, sharded._Averager)
    reduction = f"BUCKET = {sharded.BUCKET}\n\n" + "\n\n".join(map(inspect.getsource, own))
    return Hooks(
        texts,
        reduction if reduce_gradients else "",
        lambda size, ranks, ring: [Layout(size, ranks, ring).runs(r) for r in range(ranks)],
    )


def task(
    program: Program,
    plan: ShardPlan,
    functions: Sequence[Function],
    names: Mapping[str, Sequence[str]],
    *,
    whole_outputs: bool = False,
    lengths: Sequence[int] = (),
    ranges: Sequence[Range] = (),
) -> Task:
    """What is to be proved of the functions that ranks run; with free lengths at `lengths`, which
    `program` and `plan` are of, or in `ranges`, with sizes that are expressions of them."""
    outputs = [None if whole_outputs else _place(plan, p) for p in plan.outputs]
    placed = _placed(program, plan)
    return Task(
        program,
        tuple(Source(f.module, f.call, f.source) for f in functions),
        names,
        plan.ranks,
        {name: _place(plan, at) for name, at in placed.items()},
        tuple(outputs),
        plan.to_json(),
        frozenset(name for name, at in placed.items() if at is not None and at.routed),
        tuple(lengths),
        tuple(ranges),
    )


def _placed(program: Program, plan: ShardPlan) -> dict[str, Placed | None]:
    """Where the plan says each tensor lies: the prover tries it, and trusts none."""
    out = {step.node: step.out for step in plan.steps}
    found: dict[str, Placed | None] = {}
    for node in program.graph.nodes:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            many, index = out.get(node.args[0].name, ()), node.args[1]
            if isinstance(index, int) and index < len(many):
                found[node.name] = many[index]
        elif out.get(node.name):
            found[node.name] = out[node.name][0]
    return found


def _place(plan: ShardPlan, at: Placed | None) -> Hint:
    if at is None or at.routed:
        return None
    return Place(at.dim, Order(at.size, plan.ranks, plan.order), at.outer, at.scale)


def certified(found: Certificate, allow_unknown: bool) -> Certificate:
    """`found`, if it may be handed out. Raises RefutedError, UnprovedError."""
    if found.verdict == "refuted":
        raise RefutedError(
            f"the sharded program is not the model: {found.reason}",
            certificate=found,
            fix="this is a fault of Quire's: please report it with the certificate",
        )
    if found.verdict == "unknown" and not allow_unknown:
        raise UnprovedError(
            f"not shown to equal the model: {found.reason}",
            certificate=found,
            allowed="verdict proved; or unknown with allow_unknown=True",
            fix="allow_unknown=True takes it as it is, verify=False does not ask",
        )
    return found
