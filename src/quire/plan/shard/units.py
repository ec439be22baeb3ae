"""Units of an op's axis as rows of a sequence, and where these lie in its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import sympy

from quire.capture.program import Size, TensorInfo
from quire.flow.relation import Span
from quire.plan.shard.plan import Placed


@attrs.frozen
class Unit:
    """Units of an axis as rows of the sequence: `outer` blocks of `size` rows of `scale` units."""

    outer: int
    size: Size
    scale: int


def unit_of(read: Span, placed: Placed) -> Unit | None:
    """The units of an axis that reads `read` which `placed` holds parts of."""
    if read.dim != placed.dim or read.lo != 0 or read.hi != 0 or placed.routed:
        return None
    scale, outer = _known(read.scale), _known(read.outer)
    if scale is None or outer is None or placed.scale % scale:
        return None
    if outer == placed.outer:
        return Unit(1, placed.size, placed.scale // scale)
    return Unit(placed.outer, placed.size, placed.scale // scale) if outer == 1 else None


def placed_by(span: Span | None, unit: Unit) -> Placed | None:
    """Where `unit` puts the rows of a tensor that an axis reads or writes at `span`."""
    if span is None or (span.lo, span.hi) != (0, 0):
        return None
    scale, outer = _known(span.scale), _known(span.outer)
    if scale is None or outer is None or (unit.outer > 1 and outer > 1):
        return None
    return Placed(span.dim, unit.size, max(outer, unit.outer), unit.scale * scale)


def _known(size: Size) -> int | None:
    return int(size) if isinstance(size, int | sympy.Integer) else None


def fits(placed: Placed, info: TensorInfo) -> bool:
    return info.shape[placed.dim] == placed.outer * placed.size * placed.scale


def local_shape(shape: Sequence[Any], placed: Placed | None, local: Size) -> tuple[Size, ...]:
    if placed is None:
        return tuple(shape)
    rows = placed.outer * local * placed.scale
    return tuple(rows if d == placed.dim else s for d, s in enumerate(shape))


def mentions(value: Any, symbol: sympy.Symbol) -> bool:
    if isinstance(value, list | tuple):
        return any(mentions(v, symbol) for v in value)
    return isinstance(value, sympy.Expr) and symbol in value.free_symbols


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(plain(v) for v in value)
    return int(value) if isinstance(value, sympy.Integer) else value
