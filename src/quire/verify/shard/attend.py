"""`attention.…`: what every way to spread attention computes.

    out[i] = softmax over all keys j of (scale·q[i]·k[j], where the mask lets i see j) · v

for this rank's queries i and all ranks' keys, by their places in the sequence; 0 for padding rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch

from quire.verify import term as t
from quire.verify.meaning.attention import additive, per_head
from quire.verify.meaning.contraction import contract
from quire.verify.meaning.normalise import softmax
from quire.verify.meaning.pointwise import mul
from quire.verify.poly import Poly
from quire.verify.shard.hooks import Ranks
from quire.verify.shard.length import Size, as_poly
from quire.verify.shard.order import Place, place, ranked
from quire.verify.shard.tensor import Local, Namespace
from quire.verify.value import NoMeaning, Value, build, require, spread

Band = Sequence[int | None]


@attrs.frozen
class Call:
    """One call of a way, its tensors by their shapes on a rank."""

    way: str
    q: tuple[Size, ...]
    k: tuple[Size, ...]
    v: tuple[Size, ...]
    q_size: Size
    k_size: Size
    ranks: int
    ring: int
    ring_of: int
    band: tuple[int | None, int | None]
    scale: float | None
    rule: str = ""
    leaves: tuple[tuple[Size, ...], ...] = ()


class Groups:
    """`GROUPS[way, R]`: the names of a hybrid's groups."""

    def __getitem__(self, key: Any) -> Any:
        return ("GROUPS", *key)


class Attention:
    """The functions of `attention` for one symbolic rank."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.calls: dict[Call, None] = {}

    def ulysses(self, *given: Any, dropout: float = 0.0, group: Any, **more: Any) -> Local:
        if dropout:
            raise NoMeaning("attention with dropout: what is dropped is drawn")
        return self._attend("ulysses", *given, group=group, **more)

    def ring(self, *given: Any, group: Any, **more: Any) -> Local:
        return self._attend("ring", *given, group=group, **more)

    def gathered(self, *given: Any, group: Any, **more: Any) -> Local:
        return self._attend("gathered", *given, group=group, **more)

    def hybrid(
        self, *given: Any, ring_of: int, ulysses_group: Any, ring_group: Any, **more: Any
    ) -> Local:
        require(
            ulysses_group == ("GROUPS", "ulysses", ring_of)
            and ring_group == ("GROUPS", "ring", ring_of)
            and self.ranks.mesh.ranks % ring_of == 0,
            f"groups of {ring_of} by {ulysses_group} and {ring_group}",
        )
        return self._attend("hybrid", *given, group="GROUP", ring_of=ring_of, **more)

    def _attend(
        self, way: str, q: Local, k: Local, v: Local, *, q_size: Size, k_size: Size, ranks: int,
        ring: int, group: Any, leaves: Sequence[Local] = (), rule: str = "",
        band: Band = (None, None), scale: float | None = None, ring_of: int = 1,
    ) -> Local:  # fmt: skip
        left, right = band
        shapes = tuple(x.shape for x in leaves)
        made = Call(
            way, q.shape, k.shape, v.shape, q_size, k_size, ranks, ring, ring_of, (left, right),
            scale, rule, shapes,
        )  # fmt: skip
        self.calls[made] = None
        rows = self.ranks.order(q_size, ranks, ring, group)
        keys = self.ranks.order(k_size, ranks, ring, group)
        require(all(x.value.ndim == 4 for x in (q, k, v)), "attention of other than 4 dims")
        require(q.value.shape[2] is as_poly(rows.rows), "queries of another number")
        key = self.ranks.gathered(k.value, Place(2, keys))
        value = self.ranks.gathered(v.value, Place(2, keys))

        def at(row: Poly) -> Poly:
            return place(rows, self.ranks.mesh.flat(rows, row))

        mask = ruled(rule, leaves)
        out = attended(q.value, key, value, at, mask, band, scale)
        last = as_poly(rows.size) - 1
        inside = build(
            out.shape,
            out.dtype,
            lambda idx: t.ite(t.ge(last - at(idx[2])), out.real(idx), t.ZERO_),
        )
        return Local(inside)

    def __getattr__(self, name: str) -> Any:
        raise NoMeaning(f"attention.{name}")


def attended(
    query: Value, key: Value, value: Value, at: Callable[[Poly], Poly], mask: Value | None,
    band: Band, scale: float | None,
) -> Value:  # fmt: skip
    """Attention of queries whose row i is at place `at(i)`, to keys and values of all places."""
    key, value = per_head(key, query), per_head(value, query)
    width = query.shape[-1].constant
    if width is None:
        raise NoMeaning("a head width that is not known")
    scores = contract("abmk,abnk->abmn", query, key)
    scores = mul(scores, float(width**-0.5 if scale is None else scale))
    left, right = band

    def element(idx: list[Poly]) -> Any:
        p, j = at(idx[2]), idx[3]
        found = scores.real(idx)
        if mask is not None:
            require(mask.ndim <= 4, "a mask of more than 4 dims")
            more = mask.real(spread([idx[0], idx[1], p, j], mask.shape))
            found = t.add((1, found), (1, more))
        seen = t.TRUE
        if right is not None:
            seen = t.and_(seen, t.ge(p + right - j))
        if left is not None:
            seen = t.and_(seen, t.ge(j - p + left))
        return t.ite(seen, found, t.NINF)

    shown = build(scores.shape, scores.dtype, element)
    out = contract("abmn,abnk->abmk", softmax(shown, -1), value)
    return Value(out.shape, query.dtype, out.scalar)


def ruled(rule: str, leaves: Sequence[Local]) -> Value | None:
    """What the rule adds to the scores, over whole leaves: `"le.Tensor(x1, x0)"`."""
    if not rule:
        require(not leaves, "leaves without a rule")
        return None
    for x in leaves:
        require(not ranked_value(x.value), "a mask that differs by rank")
    scope: dict[str, Any] = {f"x{k}": x for k, x in enumerate(leaves)}
    found = eval(rule, {"__builtins__": {}, "inf": float("inf")}, _Names(scope))
    if not isinstance(found, Local):
        raise NoMeaning(f"a mask that is {found}")
    return additive(found.value)


class _Names(dict[str, Any]):
    """Leaves, and ATen's ops by name."""

    def __missing__(self, name: str) -> Any:
        if name in ("True", "False", "None", "inf"):
            raise KeyError(name)
        return Namespace(getattr(torch.ops.aten, name))


def ranked_value(x: Value) -> bool:
    """Whether ranks hold different tensors."""
    return ranked(x.scalar)


__all__ = ["Attention", "Groups", "ranked_value"]
