"""Attention over a sequence that is spread over ranks: the ways to do it.

    ulysses    all-to-all to whole sequences of some heads, attention, all-to-all back
    ring       keys and values travel; see ring_attention
    gathered   keys and values of all ranks brought together, queries stay
    hybrid     ulysses within groups of U ranks, a ring between the P/U groups

All take q `[B, H, s, D]`, k and v `[B, KV, t, D]`, H a multiple of KV, laid out by `Layout`, and
give `[B, H, s, D]`. Rows past the end of the sequence come out as 0.

Ulysses is from DeepSpeed-Ulysses (Jacobs et al., 2023), the hybrid from USP (Fang and Zhao, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import attrs
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from quire.plan.layout import Layout, Run
from quire.runtime.collectives import all_gather, all_to_all
from quire.runtime.draws import apart
from quire.runtime.ring_attention import flat, ring_attention


@attrs.frozen
class Heads:
    """How `heads` query heads and `kv` key heads are dealt to `parts` ranks.

    Each rank gets `each` query heads, the last ranks heads of zeros where `parts` does not divide;
    `keys` lists the key heads sent to each rank in turn, `kv_each` for each.
    """

    heads: int
    kv: int
    parts: int

    @property
    def each(self) -> int:
        return -(-self.heads // self.parts)

    @property
    def kv_each(self) -> int:
        return len(self.keys) // self.parts

    @property
    def keys(self) -> tuple[int, ...]:
        group, each = self.heads // self.kv, self.each
        last = self.kv - 1
        if each % group == 0:
            return tuple(min(i, last) for i in range(self.parts * (each // group)))
        if group % each == 0:
            return tuple(min(r * each // group, last) for r in range(self.parts))
        return tuple(min(j // group, last) for j in range(self.parts * each))


def _deal(x: Tensor, parts: int) -> Tensor:
    """`[B, parts·h, s, D]` → `[parts, B, h, s, D]`."""
    return x.unflatten(1, (parts, x.shape[1] // parts)).movedim(1, 0)


def _collect(x: Tensor) -> Tensor:
    """`[parts, B, h, s, D]`, a part from each rank → `[B, h, parts·s, D]`."""
    return x.permute(1, 2, 0, 3, 4).flatten(2, 3)


def _heads_for(x: Tensor, heads: Heads, *, keys: bool) -> Tensor:
    if not keys:
        return pad(x, (0, 0, 0, 0, 0, heads.each * heads.parts - heads.heads))
    if heads.keys == tuple(range(heads.kv)):
        return x
    return x[:, list(heads.keys)]


def to_heads(
    q: Tensor, k: Tensor, v: Tensor, heads: Heads, group: str
) -> tuple[Tensor, Tensor, Tensor]:
    """All-to-all of q, k, v, in one where they are of one length: all rows of the group's ranks,
    end to end, of this rank's heads."""
    n = heads.parts
    qs = _deal(_heads_for(q, heads, keys=False), n)
    ks = _deal(_heads_for(k, heads, keys=True), n)
    vs = _deal(_heads_for(v, heads, keys=True), n)
    if q.shape[2] != k.shape[2] or q.shape[3] != v.shape[3]:
        both = all_to_all(torch.cat([ks, vs], dim=2), group).split(heads.kv_each, dim=2)
        return _collect(all_to_all(qs, group)), _collect(both[0]), _collect(both[1])
    sizes = [heads.each, heads.kv_each, heads.kv_each]
    got = all_to_all(torch.cat([qs, ks, vs], dim=2), group).split(sizes, dim=2)
    return _collect(got[0]), _collect(got[1]), _collect(got[2])


def from_heads(out: Tensor, heads: Heads, group: str) -> Tensor:
    """The way back: this rank's rows of all heads."""
    parts = out.unflatten(2, (heads.parts, out.shape[2] // heads.parts)).permute(2, 0, 1, 3, 4)
    back = all_to_all(parts, group).movedim(0, 1).flatten(1, 2)
    return back[:, : heads.heads]


def _natural(x: Tensor, layout: Layout) -> Tensor:
    """All ranks' rows laid end to end → the sequence in order, without padding."""
    runs = layout.natural()
    if len(runs) == 1:
        return x.narrow(2, runs[0][0], layout.size)
    return torch.cat([x.narrow(2, at, n) for at, _, n in runs], dim=2)


def _dealt_rows(x: Tensor, layout: Layout) -> Tensor:
    """The inverse of `_natural`; padding is 0."""
    parts, at = [], 0
    for place, start, n in sorted(layout.natural()):
        if place > at:
            parts.append(x.new_zeros((*x.shape[:2], place - at, x.shape[3])))
        parts.append(x.narrow(2, start, n))
        at = place + n
    if at < layout.padded:
        parts.append(x.new_zeros((*x.shape[:2], layout.padded - at, x.shape[3])))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


@attrs.frozen
class Site:
    """What one attention of the graph is, for all ways to do it."""

    q: Layout
    k: Layout
    left: int | None
    right: int | None
    rule: str
    scale: float
    dropout: float = 0.0


def _site(
    q: Tensor,
    q_size: int,
    k_size: int,
    ranks: int,
    ring: int,
    band: Sequence[int | None],
    rule: str,
    scale: float | None,
    dropout: float = 0.0,
) -> Site:
    return Site(
        Layout(q_size, ranks, ring),
        Layout(k_size, ranks, ring),
        band[0],
        band[1],
        rule,
        q.shape[-1] ** -0.5 if scale is None else scale,
        dropout,
    )


def ulysses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    leaves: Sequence[Tensor] = (),
    rule: str = "",
    band: Sequence[int | None] = (None, None),
    scale: float | None = None,
    dropout: float = 0.0,
    q_size: int,
    k_size: int,
    ranks: int,
    ring: int,
    group: str,
) -> Tensor:
    """Sends b·s·(2h + 2kv)·(P−1)/P bytes forward: q, k, v there in one, out back."""
    site = _site(q, q_size, k_size, ranks, ring, band, rule, scale, dropout)
    heads = Heads(q.shape[1], k.shape[1], ranks)
    leaves = [_of_heads(leaf, heads) for leaf in leaves]
    qh, kh, vh = to_heads(q, k, v, heads, group)
    qh, kh, vh = _natural(qh, site.q), _natural(kh, site.k), _natural(vh, site.k)
    out = _whole(qh, kh, vh, leaves, site, group)
    return from_heads(_dealt_rows(out, site.q), heads, group)


def _of_heads(leaf: Tensor, heads: Heads) -> Tensor:
    if leaf.dim() >= 3 and leaf.shape[-3] > 1:
        raise ValueError("a mask that differs by head cannot be dealt to ranks by head")
    return leaf


def _whole(
    q: Tensor, k: Tensor, v: Tensor, leaves: Sequence[Tensor], site: Site, group: str
) -> Tensor:
    """Attention of whole sequences on one rank: torch's own where it knows the mask. What is
    dropped is drawn for this rank's heads."""
    plain = site.left is None and not site.rule
    square = q.shape[2] == k.shape[2]
    if plain and (site.right is None or (site.right == 0 and square)):
        with apart(group, q.device) if site.dropout else nullcontext():
            return scaled_dot_product_attention(
                q,
                k,
                v,
                is_causal=site.right is not None,
                scale=site.scale,
                dropout_p=site.dropout,
                enable_gqa=q.shape[1] != k.shape[1],
            )
    _no_dropout(site)
    rows: list[list[Run]] = [[(0, 0, q.shape[2])]]
    keys: list[list[Run]] = [[(0, 0, k.shape[2])]]
    return ring_attention(
        q,
        k,
        v,
        list(leaves),
        site.rule,
        site.left,
        site.right,
        site.scale,
        flat(rows),
        flat(keys),
        1,
        "",
    )[0]


def _no_dropout(site: Site) -> None:
    if site.dropout:
        raise ValueError("attention dropout is kept only by the plain attention of Ulysses")


def ring(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    leaves: Sequence[Tensor] = (),
    rule: str = "",
    band: Sequence[int | None] = (None, None),
    scale: float | None = None,
    q_size: int,
    k_size: int,
    ranks: int,
    ring: int,
    group: str,
) -> Tensor:
    """Sends b·s·2kv·(P−1) bytes forward."""
    site = _site(q, q_size, k_size, ranks, ring, band, rule, scale)
    rows = [site.q.runs(r) for r in range(ranks)]
    keys = [site.k.runs(r) for r in range(ranks)]
    return ring_attention(
        q,
        k,
        v,
        list(leaves),
        rule,
        site.left,
        site.right,
        site.scale,
        flat(rows),
        flat(keys),
        ranks,
        group,
    )[0]


def gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    leaves: Sequence[Tensor] = (),
    rule: str = "",
    band: Sequence[int | None] = (None, None),
    scale: float | None = None,
    q_size: int,
    k_size: int,
    ranks: int,
    ring: int,
    group: str,
) -> Tensor:
    """Sends b·s·2kv·(P−1) bytes forward, at once; holds all keys and values."""
    site = _site(q, q_size, k_size, ranks, ring, band, rule, scale)
    both = torch.stack([k, v]).movedim(3, 0).contiguous()
    every = all_gather(both, ranks, group)
    keys, values = every.movedim(0, 3).unbind(0)
    rows = [site.q.runs(r) for r in range(ranks)]
    return ring_attention(
        q,
        keys,
        values,
        list(leaves),
        rule,
        site.left,
        site.right,
        site.scale,
        flat(rows),
        flat([site.k.pieces(0, ranks)]),
        1,
        group,
    )[0]


def hybrid(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    leaves: Sequence[Tensor] = (),
    rule: str = "",
    band: Sequence[int | None] = (None, None),
    scale: float | None = None,
    q_size: int,
    k_size: int,
    ranks: int,
    ring: int,
    ring_of: int,
    ulysses_group: str,
    ring_group: str,
) -> Tensor:
    """Ulysses over U = P/`ring_of` neighbours, a ring over `ring_of` groups of them. Sends
    b·s·[(2h + 2kv)·(U−1)/U + 2kv·(R−1)] bytes forward."""
    site = _site(q, q_size, k_size, ranks, ring, band, rule, scale)
    parts = ranks // ring_of
    heads = Heads(q.shape[1], k.shape[1], parts)
    leaves = [_of_heads(leaf, heads) for leaf in leaves]
    qh, kh, vh = to_heads(q, k, v, heads, ulysses_group)
    rows = [site.q.pieces(m * parts, parts) for m in range(ring_of)]
    keys = [site.k.pieces(m * parts, parts) for m in range(ring_of)]
    out = ring_attention(
        qh,
        kh,
        vh,
        list(leaves),
        rule,
        site.left,
        site.right,
        site.scale,
        flat(rows),
        flat(keys),
        ring_of,
        ring_group,
    )[0]
    return from_heads(out, heads, ulysses_group)
