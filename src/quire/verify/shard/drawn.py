"""`ranks.drawn`: random numbers of a rank's own for its rows of a tensor.

    an op draws, for each element of its operand, apart from all others; each rank draws for its
    own rows from a stream of its own   ⟹   what all draw are the rows of one outcome

The model's outcome is known by name only, and there is one for each node that draws (axiom
`draws`). So what a rank draws is this rank's rows of it, if the call is the model's: the op, its
numbers, and this rank's rows of its operand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from quire.capture.program import Op, Operand
from quire.verify.meaning.table import named
from quire.verify.shard.order import Mesh, Place
from quire.verify.shard.row_parts import RowParts
from quire.verify.shard.task import Hint
from quire.verify.shard.tensor import Local, Namespace, local
from quire.verify.value import NotShown, Value, require

ELEMENTWISE = {"aten.native_dropout.default"}
"""Ops that draw each element apart, by that element of their one operand alone."""


class Drawn(RowParts):
    """The functions of `ranks`, and `drawn` among them. `asked` gives the model's op that the
    statement is named after, and what that op gives."""

    def __init__(
        self,
        mesh: Mesh,
        part_of: Callable[[Local], tuple[fx.Node, Hint, Value]],
        known: Callable[[fx.Node, Hint, Value], Value],
        asked: Callable[[], tuple[Op, Any]],
    ) -> None:
        super().__init__(mesh, part_of, known)
        self.asked = asked

    def drawn(self, op: Namespace, group: Any, *args: Any, **kwargs: Any) -> Any:
        self.over(group, "numbers drawn")
        model, outcome = self.asked()
        overload, arguments = named(op.target, args, kwargs)
        require(str(overload) == str(model.target), f"{overload} drawn, and not {model.target}")
        if str(overload) not in ELEMENTWISE:
            raise NotShown(f"{overload}, which may draw rows by each other")
        at: Hint = None
        for name, want in model.arguments.items():
            x = arguments.get(name)
            if isinstance(want, Operand):
                require(isinstance(x, Local), f"{name} of another kind")
                node, at, _ = self.part_of(x)  # type: ignore[arg-type]
                require(node is want.node, f"{name} is {node}, and not {want.node}")
            else:
                require(type(x) is type(want) and x == want, f"{name}={x}, and not {want}")
        if not isinstance(at, Place):
            raise NotShown("numbers that all ranks must draw alike")
        whole = outcome if isinstance(outcome, tuple) else (outcome,)
        rows = tuple(self.mesh.seen(at, x) for x in whole)
        return local(rows if isinstance(outcome, tuple) else rows[0])
