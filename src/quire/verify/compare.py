"""Tensors compared, and what is worth knowing of one."""

from __future__ import annotations

from typing import Any

from quire.verify.poly import Poly
from quire.verify.same import same
from quire.verify.term.core import flat
from quire.verify.value import Value, indices

WORTH = 60
"""Terms up to this size are worth more known than named."""


def closed(x: Any) -> bool:
    """Whether a scalar depends on indices and sizes alone and is small, such as a position or a
    causal mask: it is worth more known than named."""
    left = [WORTH]

    def small(y: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        if isinstance(y, Poly):
            return all(small(a) for atom in y.free for a in atom.args)
        if y.op in ("read", "bread", "undef"):
            return False
        return all(small(a) for a in flat(y.args))

    return small(x)


def differ(got: Value, want: Value) -> str:
    """Why the two are not shown equal; empty if they are."""
    if got.ndim != want.ndim or not all(
        a is b or same(a, b) for a, b in zip(got.shape, want.shape, strict=True)
    ):
        return f"of shape {got.shape}, and not {want.shape}"
    if got.dtype != want.dtype:
        return f"of {got.dtype}, and not {want.dtype}"
    if got.shape != want.shape:
        got = Value(want.shape, got.dtype, got.at(indices(want.shape)))
    if same(got.scalar, want.scalar):
        return ""
    return f"\n     is {got.scalar}\n not {want.scalar}"[:2000]
