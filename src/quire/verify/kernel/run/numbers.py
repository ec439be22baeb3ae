"""Scalars that an emitted kernel is run on.

A real is a tensor of float64, an index one of int64 or a Python int, a truth value one of bool. In
the field an element is a pair packed into a float (`verify/field.py`); it is ordered by its residue
mod P, −inf below and inf above all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor

from quire.verify import field
from quire.verify.field_ops import Unsupported


class Numbers(ABC):
    """Arithmetic on reals; loops fold along dim 0."""

    @abstractmethod
    def const(self, value: float) -> Tensor: ...
    @abstractmethod
    def of_int(self, x: Tensor) -> Tensor: ...
    @abstractmethod
    def to_int(self, x: Tensor) -> Tensor: ...
    @abstractmethod
    def add(self, a: Tensor, b: Tensor) -> Tensor: ...
    @abstractmethod
    def mul(self, a: Tensor, b: Tensor) -> Tensor: ...
    @abstractmethod
    def div(self, a: Tensor, b: Tensor) -> Tensor: ...
    @abstractmethod
    def neg(self, x: Tensor) -> Tensor: ...
    @abstractmethod
    def function(self, name: str, *xs: Tensor) -> Tensor: ...
    @abstractmethod
    def rank(self, x: Tensor) -> Tensor:
        """Plain floats in the order of the elements."""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """The sum along dim 0."""

    @abstractmethod
    def matmul(self, a: Tensor, b: Tensor) -> Tensor: ...
    @abstractmethod
    def shift(self, scores: Tensor) -> Tensor:
        """What a softmax along dim 0 subtracts: it cancels."""

    @abstractmethod
    def stored(self, x: Tensor) -> Tensor:
        """A value as a buffer that stands for a tensor of the graph holds it."""

    def choose(self, word: str, a: Tensor, b: Tensor) -> Tensor:
        """The larger or smaller ("max", "min")."""
        less = self.rank(a) < self.rank(b)
        return torch.where(less if word == "max" else ~less, b, a)

    def extreme(self, word: str, x: Tensor) -> Tensor:
        """The largest or smallest along dim 0."""
        order = self.rank(x)
        at = order.argmax(0) if word == "max" else order.argmin(0)
        return x.gather(0, at[None])[0]


@final
class FieldNumbers(Numbers):
    """The finite field: no rounding, so that equal programs give equal elements."""

    def const(self, value: float) -> Tensor:
        if math.isnan(value):
            raise Unsupported("a NaN")
        made = value if math.isinf(value) else field.encode(value)
        return torch.full((), made, dtype=torch.float64)

    def of_int(self, x: Tensor) -> Tensor:
        return field.encoded(x)

    def to_int(self, x: Tensor) -> Tensor:
        raise Unsupported("a float made an integer")

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return field.add(a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return field.multiply(a, b)

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return field.multiply(a, field.inverse(b))

    def neg(self, x: Tensor) -> Tensor:
        return torch.where(torch.isinf(x), -x, field.negative(x))

    def function(self, name: str, *xs: Tensor) -> Tensor:
        return field.exp(xs[0]) if name == "exp" else field.function(name, *xs)

    def rank(self, x: Tensor) -> Tensor:
        return torch.where(torch.isinf(x), x, field.unpack(x)[0])

    def total(self, x: Tensor) -> Tensor:
        return field.total(x, [0], False)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape[-1] > field.MOST_TERMS:
            raise Unsupported(f"a product of {a.shape[-1]} terms")
        return field.bilinear(a, b, torch.matmul)

    def shift(self, scores: Tensor) -> Tensor:
        return torch.zeros(scores.shape[1:], dtype=torch.float64)

    def stored(self, x: Tensor) -> Tensor:
        return canonical(x)


def canonical(x: Tensor) -> Tensor:
    """`x` with residues mod Q that follow from those mod P: equal however it was computed."""
    p, _ = field.unpack(x)
    return torch.where(torch.isinf(x), x, field.settled(field.pack(p, p, True)))


@final
class RealNumbers(Numbers):
    """float64."""

    def const(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64)

    def of_int(self, x: Tensor) -> Tensor:
        return x.double()

    def to_int(self, x: Tensor) -> Tensor:
        return x.long()

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        return a / b

    def neg(self, x: Tensor) -> Tensor:
        return -x

    def function(self, name: str, *xs: Tensor) -> Tensor:
        if not hasattr(torch, name):
            raise Unsupported(f"q.{name}")
        return getattr(torch, name)(*xs)

    def rank(self, x: Tensor) -> Tensor:
        return x

    def total(self, x: Tensor) -> Tensor:
        return x.sum(0)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def shift(self, scores: Tensor) -> Tensor:
        top = scores.amax(0) if scores.shape[0] else torch.zeros(scores.shape[1:]).double()
        return torch.where(torch.isinf(top), torch.zeros_like(top), top)

    def stored(self, x: Tensor) -> Tensor:
        return x


def as_tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x)
