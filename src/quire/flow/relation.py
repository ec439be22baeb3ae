"""The algebra: how the dims of an op's operands and outputs hang together.

An op is described by its *axes*. An axis is a range of units `0 … size` over which the op can be
split: for an interval of units `[a, b)` the op, given only the parts of its operands that the
axis reads there, produces the part of its outputs that the axis writes there. Joining the parts
(concatenation, or a monoid where the axis is folded away) gives the op's own result.

A `Span` is one operand's or output's side of that. The words for it:

    Map        span(d)                  out[i] reads in[i]
    Broadcast  None                     out[i] reads the same `in` for all i
    Window     window(d, s, p, k)       out[i] reads in[s·i − p … s·i − p + k)
    Split      span(d, scale=n)         unit i is in[i·n … (i+1)·n)
    Merge      span(d, outer=m)         unit i is in[r·size + i] for each r < m
    Gather     None for the table, span(d) for the index
    Reduce(m)  the output's span is None and `Axis.join` is the monoid m
    Opaque     no axis touches that dim
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import attrs

from quire.capture.program import Op, Size


class Join(Enum):
    """How the parts of an output become the whole."""

    CONCAT = "concat"
    SUM = "sum"
    MEAN = "mean"
    """Parts are means; the whole is their mean weighted by part size."""
    MAX = "max"
    MIN = "min"
    PROD = "prod"
    ANY = "any"
    ALL = "all"
    SOFTMAX = "softmax"
    """A softmax over the axis: its parts join by rescaling, if all that reads it sums over the
    axis (online softmax). Carry each part's maximum and sum of exponentials, not their logsumexp:
    in a row masked with the dtype's lowest value the logarithm of the sum is rounded away."""
    WITHIN = "within"
    """A stretch of the output is the op's other operand, part by part; the rest is what the operand
    `Axis.init` holds there. It can be written over that operand where nothing reads it any more."""

    @property
    def folds(self) -> bool:
        """Whether the parts' values are combined, and not laid beside each other."""
        return self not in (Join.CONCAT, Join.WITHIN)


@attrs.frozen
class Span:
    """Which indices of dim `dim` belong to the units `[a, b)` of an axis.

    The dim has size `outer · M`; the indices are `r·M + [scale·a + lo, scale·b + hi)` for every
    `r < outer`, cut to `[0, M)` for each r. Where `fill` is given, the op is to see that value at
    the positions cut off (a convolution's zero padding).
    """

    dim: int
    scale: Size = 1
    lo: Size = 0
    hi: Size = 0
    outer: Size = 1
    fill: float | None = None

    def interval(self, a: Any, b: Any) -> tuple[Any, Any]:
        """The interval within one of the `outer` blocks, before it is cut to the dim."""
        return self.scale * a + self.lo, self.scale * b + self.hi


def span(dim: int, *, scale: Size = 1, outer: Size = 1) -> Span:
    return Span(dim, scale=scale, outer=outer)


def window(dim: int, stride: int, padding: int, kernel: int, *, fill: float | None = None) -> Span:
    """out[i] reads in[stride·i − padding … stride·i − padding + kernel)."""
    return Span(dim, scale=stride, lo=-padding, hi=kernel - stride - padding, fill=fill)


@attrs.frozen
class Part:
    """One part of an axis of an op, for `Axis.edit`: units `[lo, hi)` of it.

    `shapes` are the shapes of the op's outputs for this part. All are ints, or sympy expressions
    of the loop's variables.
    """

    op: Op
    lo: Any
    hi: Any
    shapes: tuple[tuple[Any, ...], ...]

    @property
    def length(self) -> Any:
        return self.hi - self.lo


Edit = Callable[[Part], Mapping[str, Any]]
"""Arguments of the op, by schema name, that differ for a part (`size` of a view, `start` of an
arange, `padding` of a convolution).

A name that the overload's schema lacks belongs to a longer overload of the op (`start` for
`arange.default`): call the overload packet. What depends on arguments is read from `part.op`, so
that the edits of two axes compose.
"""


@attrs.frozen
class Axis:
    """A range of units over which an op can be split. One entry in `reads` per operand, one in
    `writes` per output; None where the operand is read whole, or the output not split.

    `init` names the operand (by index) whose value is added once to a SUM, such as a bias; `edit`
    makes the parts leave it out. Its dims are those dims of the output that other axes of the
    flow map them to (a convolution's bias: dim 1), else they broadcast. Of a WITHIN it names the
    operand that holds what no part writes.
    """

    size: Size
    reads: tuple[Span | None, ...]
    writes: tuple[Span | None, ...]
    join: Join = Join.CONCAT
    init: int | None = None
    edit: Edit | None = None
    target: Callable[..., Any] | None = None
    """What computes a part, where the op itself cannot: a function of the op's arguments."""


@attrs.frozen
class Flow:
    """All axes of one op, and what the op costs.

    `flops` counts multiply and add apart. `opaque` says, for dims of the outputs that no axis
    writes, why that is so.
    """

    axes: tuple[Axis, ...]
    flops: Size = 0
    opaque: Mapping[int, str] = attrs.field(factory=dict)
    pointwise: bool = False
    """Each output element depends on the operands' elements at the same (broadcast) index only,
    so that the output may be written over an operand of its shape and dtype."""
