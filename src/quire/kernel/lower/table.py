"""The table of ATen → loop IR rules, and what a rule is given.

A rule takes the lowering and an op and returns the op's output as a `Tensor`: a function from an
index to a scalar expression (a tuple of them for several outputs). Nothing is stored by a rule
unless it asks for it with `Lowering.stored`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs
import torch

from quire.capture.program import Op
from quire.kernel import index as ix
from quire.kernel.ir import Buffer, Call, Expr, Num, Read, Size, Var, kind

aten: Any = torch.ops.aten


class NotLoweredError(Exception):
    """A rule does not take this argument of its op. The walk raises MissingRuleError from it, with
    the op and its place in the model."""


@attrs.frozen(eq=False)
class Tensor:
    """`at(index)` is the element there; `index` has one integer expression for each dim."""

    shape: tuple[Size, ...]
    dtype: torch.dtype
    at: Callable[[tuple[Expr, ...]], Expr]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def broadcast(self, index: Sequence[Expr]) -> Expr:
        """The element read at an index of a shape this one broadcasts to."""
        own = index[len(index) - self.ndim :]
        return self.at(
            tuple(ix.ZERO if s == 1 else i for i, s in zip(own, self.shape, strict=True))
        )


class Lowering(Protocol):
    """What rules may ask of the lowering."""

    def tensor(self, value: Any) -> Tensor:
        """An operand, a Python number or a length as a tensor."""
        ...

    def var(self, size: Size, hint: str = "i") -> Var:
        """A new loop variable."""
        ...

    def stored(self, value: Tensor, name: str = "") -> Tensor:
        """The same tensor, kept in a buffer."""
        ...

    def topk(self, value: Tensor, dim: int, k: int, largest: bool) -> tuple[Tensor, Tensor]: ...

    def scan(self, value: Tensor, dim: int, monoid: str) -> Tensor: ...

    def written(self, target: Tensor, at: Any, value: Tensor, op: Op) -> Tensor:
        """`target` with `value` written at the index `at(i)` for each index i of value."""
        ...


Rule = Callable[[Lowering, Op], Any]
RULES: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for overloads, named as `add.Tensor`, or `add` for all of a packet."""

    def register(function: Rule) -> Rule:
        for name in " ".join(names).split():
            base, _, overload = name.partition(".")
            packet = getattr(aten, base)
            for each in [overload] if overload else packet.overloads():
                RULES[getattr(packet, each)] = function
        return function

    return register


def c(op: str, *args: Expr) -> Expr:
    return ix.call(op, args)


def as_float(e: Expr) -> Expr:
    return c("tofloat", e)


def as_kind(e: Expr, dtype: torch.dtype) -> Expr:
    """An expression converted to the kind of a dtype (float dtypes are all the reals)."""
    have = kind(e)
    if dtype == torch.bool:
        return c("tobool", e)
    if dtype.is_floating_point:
        return e if have == "float" else as_float(e)
    return e if have == "int" else c("toint", e)


def number(value: float) -> Num:
    return Num(value)


def read(buffer: Buffer) -> Callable[[tuple[Expr, ...]], Expr]:
    return lambda index: Read(buffer, tuple(index))


__all__ = [
    "RULES", "Call", "Lowering", "Tensor", "as_float", "as_kind", "aten", "c", "number", "read",
    "rule",
]  # fmt: skip
