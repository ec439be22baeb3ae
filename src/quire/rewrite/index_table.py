"""The index meaning of the ops that masks are made of, keyed by ATen overload.

A rule gets the op's arguments by schema name (tensors as index functions, sizes as ints or sympy
expressions), the box of the output and its dtype, and returns the output's element at
`(i0, i1, …)`. It raises `Unknown` for what it cannot say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import sympy
import torch

from quire.rewrite.terms import (
    Affine,
    Atom,
    Both,
    Box,
    Cond,
    If,
    Unknown,
    Value,
    choose,
    choose_cond,
    index,
    of_size,
    substitute,
    substitute_cond,
)

aten: Any = torch.ops.aten

Args = Mapping[str, Any]
Meaning = Value | Cond
Function = Callable[[Args, Box, torch.dtype], Meaning]

EXACT = {
    torch.float64: 53,
    torch.float32: 24,
    torch.float16: 11,
    torch.bfloat16: 8,
}
"""Integers below 2 to this are exact in the dtype."""


@attrs.frozen
class Rule:
    function: Function
    reads_values: bool = True
    """False for ops such as `new_ones`, which take no more than shape and dtype of an operand."""


RULES: dict[Any, Rule] = {}


def rule(*targets: Any, reads_values: bool = True) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        for target in targets:
            RULES[target] = Rule(function, reads_values)
        return function

    return register


@attrs.frozen
class Constant:
    """A Python number or a size as an operand without dims."""

    number: Any

    @property
    def value(self) -> Meaning:
        if isinstance(self.number, bool | float):
            return self.number
        if isinstance(self.number, int | sympy.Expr):
            return of_size(self.number)
        raise Unknown(f"{self.number!r} is no number")


def is_cond(value: Meaning) -> bool:
    return isinstance(value, bool | Atom | Both)


def number(value: Any) -> Value:
    """A bool as 0 or 1."""
    return choose(value, Affine(1), Affine(0)) if is_cond(value) else value


def condition(value: Any) -> Cond:
    """A number as `number != 0`."""
    if is_cond(value):
        return value
    if isinstance(value, If):
        return choose_cond(value.cond, condition(value.then), condition(value.other))
    if not isinstance(value, Affine):
        return value != 0.0
    if value.is_const:
        return value.const != 0
    raise Unknown("a number as a condition")


def cast(value: Meaning, dtype: torch.dtype, box: Box) -> Meaning:
    """`value` as the dtype holds it; Unknown where that would round or wrap in a way that the
    terms cannot express."""
    if dtype == torch.bool:
        return condition(value)
    return _cast(number(value), dtype, box)


def _cast(value: Value, dtype: torch.dtype, box: Box) -> Value:
    if isinstance(value, If):
        return choose(value.cond, _cast(value.then, dtype, box), _cast(value.other, dtype, box))
    if not isinstance(value, Affine):
        held = torch.tensor(value, dtype=torch.float64).to(dtype).item()
        if dtype.is_floating_point:
            return held
        if held != value:
            raise Unknown("a float cut to an integer")
        return Affine(int(held))
    if dtype.is_floating_point:
        if value.is_const:
            return _cast(float(value.const), dtype, box)
        _within(value, box, -(2 ** EXACT.get(dtype, 0)), 2 ** EXACT.get(dtype, 0))
    elif dtype != torch.int64:
        limits = torch.iinfo(dtype)
        _within(value, box, limits.min, limits.max)
    return value


def _within(value: Affine, box: Box, least: int, most: int) -> None:
    low, high = box.min(value), box.max(value)
    if low is None or high is None or low < least or high > most:
        raise Unknown("an integer that the dtype may not hold")


def read(operand: Any, box: Box) -> Any:
    """The element of an operand that is read at the output's index, under broadcasting."""
    if not hasattr(operand, "box"):
        return Constant(operand).value
    ahead = len(box.shape) - len(operand.shape)
    at = {}
    for dim, size in enumerate(operand.shape):
        if size == box.shape[ahead + dim]:
            at[dim] = index(ahead + dim)
        elif size == 1:
            at[dim] = Affine(0)
        else:
            raise Unknown("sizes that broadcast only for some lengths")
    return at_index(operand, at, box)


def at_index(operand: Any, at: Mapping[int, Affine], box: Box) -> Any:
    """The operand's element where its index variables have the values `at`."""
    if is_cond(operand.value):
        return substitute_cond(operand.value, at, box)
    return substitute(operand.value, at, box)


def dim_of(args: Args, name: str, ndim: int) -> int:
    return int(args[name]) % ndim if ndim else 0
