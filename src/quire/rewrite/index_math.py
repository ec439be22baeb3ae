"""Index meaning of arithmetic, comparisons, logic and choice. See `index_table`."""

from __future__ import annotations

from typing import Any

import torch

from quire.rewrite.index_table import (
    Args,
    Function,
    Meaning,
    at_index,
    aten,
    cast,
    condition,
    dim_of,
    number,
    read,
    rule,
)
from quire.rewrite.terms import (
    Affine,
    Box,
    Cond,
    Unknown,
    Value,
    both,
    choose,
    choose_cond,
    combine,
    compare,
    index,
    negate,
    of_size,
)

# --- arithmetic -----------------------------------------------------------------------------


def _float(op: str, a: float, b: float, dtype: torch.dtype) -> float:
    # In torch itself, so that the rounding is the one that the model sees.
    held = getattr(torch, op)(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    return held.item()


def _leaf(op: str, a: Affine | float, b: Affine | float, dtype: torch.dtype) -> Affine | float:
    exact = isinstance(a, Affine) and isinstance(b, Affine)
    if exact and op == "add":
        return a + b  # type: ignore[operator]
    if exact and op == "sub":
        return a - b  # type: ignore[operator]
    if exact and op == "mul" and (a.is_const or b.is_const):  # type: ignore[union-attr]
        return a * b.const if b.is_const else b * a.const  # type: ignore[union-attr]
    floats = [float(x.const) if isinstance(x, Affine) and x.is_const else x for x in (a, b)]
    if not dtype.is_floating_point or not all(isinstance(x, float) for x in floats):
        raise Unknown(f"{op} of {a} and {b}")
    return _float(op, floats[0], floats[1], dtype)  # type: ignore[arg-type]


def _arithmetic(op: str) -> Function:
    def function(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
        if args.get("alpha", 1) != 1:
            raise Unknown("alpha")
        a, b = (cast(read(args[n], box), dtype, box) for n in ("self", "other"))
        if dtype == torch.bool:
            raise Unknown("arithmetic on bools")
        return combine(lambda x, y: _leaf(op, x, y, dtype), number(a), number(b))

    return function


for _op in ("add", "sub", "mul"):
    rule(getattr(aten, _op).Tensor, getattr(aten, _op).Scalar)(_arithmetic(_op))


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return _arithmetic("div")(args, box, dtype)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return _arithmetic("sub")({**args, "self": args["other"], "other": args["self"]}, box, dtype)


@rule(aten.neg.default)
def _neg(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return _arithmetic("mul")({"self": args["self"], "other": -1}, box, dtype)


@rule(aten.diff.default)
def _diff(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    operand, before = args["self"], args["prepend"]
    dim = dim_of(args, "dim", len(box.shape))
    if args["n"] != 1 or args["append"] is not None or dtype == torch.bool:
        raise Unknown("such a diff")
    here = {d: index(d) for d in range(len(box.shape))}
    ahead = 0 if before is None else before.shape[dim]
    if ahead not in (0, 1):
        raise Unknown("a diff with several elements before it")

    def step(this: Any, last: Any) -> Value:
        return combine(lambda x, y: _leaf("sub", x, y, dtype), number(this), number(last))

    this = at_index(operand, {**here, dim: index(dim) + (1 - ahead)}, box)
    inner = step(this, at_index(operand, {**here, dim: index(dim) - ahead}, box))
    if not ahead:
        return inner
    at = {**here, dim: Affine(0)}
    first = step(at_index(operand, at, box), at_index(before, at, box))
    return choose(box.atom("==", index(dim)), first, inner)


@rule(aten.cumsum.default)
def _cumsum(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    dim = dim_of(args, "dim", len(box.shape))
    term = number(args["self"].value)
    if not isinstance(term, Affine) or not term.is_const:
        raise Unknown("a running sum of anything but a constant")
    return (index(dim) + 1) * term.const


# --- comparisons and logic ------------------------------------------------------------------


def _compare_leaves(op: str, a: Affine | float, b: Affine | float, box: Box) -> Cond:
    if isinstance(a, Affine) and isinstance(b, Affine):
        if op in ("eq", "ne"):
            found = box.atom("==", a - b)
            return found if op == "eq" else negate(found)
        more, less = (a, b) if op in ("ge", "gt") else (b, a)
        return box.atom(">=", more - less if op in ("ge", "le") else more - less - 1)
    x, y = (float(v.const) if isinstance(v, Affine) and v.is_const else v for v in (a, b))
    if not isinstance(x, float) or not isinstance(y, float):
        raise Unknown(f"{op} of a float and an integer that varies")
    return bool(getattr(torch, op)(torch.tensor(x, dtype=torch.float64), y))


def _in_one_dtype(a: Any, b: Any, box: Box) -> tuple[Meaning, Meaning]:
    """Both operands of a comparison as the dtype holds them in which torch compares them."""
    dtypes = {x.dtype for x in (a, b) if hasattr(x, "box")}
    floats = [d for d in dtypes if d.is_floating_point]
    values = read(a, box), read(b, box)
    if not floats:
        if any(isinstance(v, float) for v in values):
            raise Unknown("integers compared with a float")
        return values
    if len(dtypes) > 1:
        raise Unknown("dtypes that are promoted")
    return cast(values[0], floats[0], box), cast(values[1], floats[0], box)


def _comparison(op: str) -> Function:
    def function(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
        a, b = (number(v) for v in _in_one_dtype(args["self"], args["other"], box))
        return compare(lambda x, y: _compare_leaves(op, x, y, box), a, b)

    return function


for _op in ("eq", "ne", "le", "lt", "ge", "gt"):
    rule(getattr(aten, _op).Tensor, getattr(aten, _op).Scalar)(_comparison(_op))


def _logic(op: Any, bitwise: bool) -> Function:
    def function(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
        if bitwise and dtype != torch.bool:
            raise Unknown("bits of an integer")
        return both(op, [condition(read(args[n], box)) for n in ("self", "other")])

    return function


rule(aten.__and__.Tensor, aten.bitwise_and.Tensor)(_logic("and", True))
rule(aten.__or__.Tensor, aten.bitwise_or.Tensor)(_logic("or", True))
rule(aten.logical_and.default)(_logic("and", False))
rule(aten.logical_or.default)(_logic("or", False))


@rule(aten.logical_not.default, aten.bitwise_not.default)
def _not(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    if dtype != torch.bool:
        raise Unknown("bits of an integer")
    return negate(condition(read(args["self"], box)))


# --- choice ---------------------------------------------------------------------------------


def _pick(cond: Any, then: Any, other: Any, box: Box, dtype: torch.dtype) -> Meaning:
    then, other = cast(then, dtype, box), cast(other, dtype, box)
    if dtype == torch.bool:
        return choose_cond(cond, then, other)  # type: ignore[arg-type]
    return choose(cond, then, other)  # type: ignore[arg-type]


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def _where(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    cond = condition(read(args["condition"], box))
    return _pick(cond, read(args["self"], box), read(args["other"], box), box, dtype)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    cond = condition(read(args["mask"], box))
    return _pick(cond, read(args["value"], box), read(args["self"], box), box, dtype)


def _triangle(upper: bool) -> Function:
    def function(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
        row, column = index(len(box.shape) - 2), index(len(box.shape) - 1)
        offset = column - row - of_size(args["diagonal"])
        kept = box.atom(">=", offset if upper else -offset)
        zero = False if dtype == torch.bool else Affine(0)
        return _pick(kept, read(args["self"], box), zero, box, dtype)

    return function


rule(aten.triu.default)(_triangle(True))
rule(aten.tril.default)(_triangle(False))
