"""Tensors as functions from indices to scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from quire.verify import term as t
from quire.verify.decide import prove
from quire.verify.poly import ONE, ZERO, Poly, atom_of, index, poly, product, single
from quire.verify.term import Term

Index = Sequence[Poly]
Shape = tuple[Poly, ...]


class NoMeaning(Exception):
    """The prover does not know an op, a kernel, or an argument of one."""


class NotShown(Exception):
    """A side condition that a meaning rests on could not be shown."""


KINDS = {torch.bool: "bool"}


def kind_of(dtype: torch.dtype) -> str:
    if dtype is torch.bool:
        return "bool"
    return "real" if dtype.is_floating_point or dtype.is_complex else "int"


@attrs.frozen(eq=False)
class Value:
    """A tensor's elements: `scalar` over the canonical indices of `shape`; a Poly for integers."""

    shape: Shape
    dtype: torch.dtype
    scalar: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def kind(self) -> str:
        return kind_of(self.dtype)

    def at(self, idx: Index) -> Any:
        """The element at `idx`."""
        to = {}
        for k, (size, i) in enumerate(zip(self.shape, idx, strict=True)):
            own = index(k, size)
            if own is not i:
                to[atom_of(own)] = i
        return t.substitute(self.scalar, to) if to else self.scalar

    def real(self, idx: Index) -> Term:
        return as_real(self.at(idx))

    def int(self, idx: Index) -> Poly:
        return as_int(self.at(idx))

    def true(self, idx: Index) -> Term:
        return as_bool(self.at(idx))

    @property
    def name(self) -> str | None:
        """The name, of a tensor that is known by name only."""
        x = self.scalar
        if isinstance(x, Poly):
            inner = single(x)
            x = inner.args[0] if inner is not None and inner.kind == "val" else t.TRUE
        if x.op in ("read", "bread") and x.args[1] == tuple(indices(self.shape)):
            return x.args[0]
        return None

    @property
    def numel(self) -> Poly:
        return product(self.shape)


def as_real(x: Any) -> Term:
    if isinstance(x, Poly):
        return t.of_int(x)
    if isinstance(x, bool):
        return t.const(int(x))
    if isinstance(x, int | float):
        return number(x)
    return t.ind(x) if x.bool else x


def number(x: float) -> Term:
    """A constant of a program. The most negative floats stand for −∞ (axiom `mask-minimum`)."""
    if isinstance(x, float) and x <= torch.finfo(torch.float16).min:
        return t.NINF
    return t.const(x)


def as_int(x: Any) -> Poly:
    if isinstance(x, Poly):
        return x
    if isinstance(x, bool | int):
        return poly(int(x))
    if x.bool:
        return t.ite(x, ONE, ZERO)
    if x.op in ("int", "const"):
        return t.int_of(x)
    return t.int_of(t.make("trunc", x))


def as_bool(x: Any) -> Term:
    if isinstance(x, bool):
        return t.TRUE if x else t.FALSE
    if isinstance(x, Poly):
        return t.not_(t.eq(x))
    if isinstance(x, int | float):
        return t.TRUE if x else t.FALSE
    return x if x.bool else t.not_(t.compare("eq", x, t.ZERO_))


def convert(x: Any, kind: str) -> Any:
    return {"real": as_real, "int": as_int, "bool": as_bool}[kind](x)


def indices(shape: Shape) -> list[Poly]:
    return [index(k, size) for k, size in enumerate(shape)]


def build(shape: Sequence[Any], dtype: torch.dtype, element: Callable[[list[Poly]], Any]) -> Value:
    """The tensor whose element at `idx` is `element(idx)`."""
    sizes = tuple(poly(s) for s in shape)
    scalar = element(indices(sizes))
    return Value(sizes, dtype, convert(scalar, kind_of(dtype)))


def cut(name: str, shape: Sequence[Any], dtype: torch.dtype) -> Value:
    """A tensor that is known by name only."""
    kind = kind_of(dtype)

    def element(idx: list[Poly]) -> Any:
        x = t.read(name, idx, kind)
        return t.int_of(x) if kind == "int" else x

    return build(shape, dtype, element)


def same_size(a: Poly, b: Poly, why: str) -> bool:
    return a is b or prove(a - b, "=", why=why) or (prove(a - b, why=why) and prove(b - a, why=why))


def require(holds: bool, what: str) -> None:
    if not holds:
        raise NotShown(what)


def broadcast(*shapes: Shape) -> Shape:
    """The shape that torch broadcasts to."""
    ndim = max((len(s) for s in shapes), default=0)
    out: list[Poly] = []
    for k in range(ndim):
        size = ONE
        for shape in shapes:
            at = k - ndim + len(shape)
            if at >= 0 and shape[at] is not ONE:
                if size is not ONE:
                    require(
                        same_size(size, shape[at], "sizes agree"),
                        f"sizes {size} and {shape[at]} of dim {k} do not agree",
                    )
                else:
                    size = shape[at]
        out.append(size)
    return tuple(out)


def spread(idx: Index, shape: Shape) -> list[Poly]:
    """An index of a broadcast shape as one of `shape`."""
    own = list(idx)[len(idx) - len(shape) :]
    return [ZERO if size is ONE else i for i, size in zip(own, shape, strict=True)]


# --- views -----------------------------------------------------------------------------------
