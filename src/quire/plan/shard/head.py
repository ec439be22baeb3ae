"""Scores and loss in parts of a rank's rows, where nobody else reads the scores.

    linear → pointwise ops, views that keep its last dim → cross entropy
        becomes  Σ over parts of rows: the same on these rows, computed again in backward

Side condition: every tensor on the way has one reader and is no output. Claim: each row's loss
depends on that row of the linear's input alone, so that the sum over parts is the sum over rows.
A vocabulary of 128 K makes the scores of 128 K tokens 64 GiB in fp32: the largest tensor there is.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import fx

from quire.capture.program import Program
from quire.flow.registry import flow_of
from quire.plan.shard.plan import Placed, Step

LINEAR = torch.ops.aten.linear.default


@attrs.frozen(eq=False)
class Head:
    """`linear`'s node, the nodes between, and the loss's."""

    linear: fx.Node
    between: tuple[fx.Node, ...]
    loss: fx.Node

    @property
    def scores(self) -> tuple[fx.Node, ...]:
        return (self.linear, *self.between)


def only_losses(program: Program) -> Program:
    """`program` with its outputs other than scalars dropped (None in their place)."""
    kept = tuple(
        None if isinstance(o, fx.Node) and program.info(o).ndim > 0 else o for o in program.outputs
    )
    return attrs.evolve(program, outputs=kept)


def find_head(
    program: Program, steps: Mapping[fx.Node, Step], places: Mapping[fx.Node, Placed | None]
) -> Head | None:
    """The head of the one loss of `program` whose rows are spread; None if there is none such."""
    losses = [n for n, step in steps.items() if step.kind == "loss"]
    if len(losses) != 1 or program.ops[losses[0]]["self"].ndim != 2:
        return None
    loss = losses[0]
    at = program.ops[loss]["self"].node
    between: list[fx.Node] = []
    while True:
        readers = [u for u in at.users if u in places]
        if len(readers) != 1 or at in program.outputs or at not in program.ops:
            return None
        op, step = program.ops[at], steps[at]
        if step.kind != "local" or step.gathers or step.fills:
            return None
        if op.target is LINEAR:
            return Head(at, tuple(reversed(between)), loss)
        source = op.operands[0].info if len(op.operands) == 1 else None
        if source is None or source.shape[-1] != op.out.shape[-1]:
            return None
        if not (flow_of(op).pointwise or op.is_view):
            return None
        between.append(at)
        at = op.operands[0].node
