"""Attention of this rank's queries against keys that travel round a ring of ranks.

Ring attention (Liu et al., 2023) with the zigzag balance of ring-flash-attention (Zhu): the next
hop's transfer is posted before the current block's compute. With one hop nothing travels: the
keys given are all there are (gathered K/V, or the inner attention of Ulysses).

Runs are given for every member as a flat list `member, at, start, length, …`; the member whose
turn it is, this rank, is read when the op runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from quire.plan.layout import Run
from quire.runtime import wire
from quire.runtime.block_attention import Accumulator, Visible, backward, blocks, forward
from quire.runtime.failure import guarded, resolve


def flat(runs: Sequence[Sequence[Run]]) -> list[int]:
    """Runs by member as one list of integers."""
    return [n for member, rows in enumerate(runs) for run in rows for n in (member, *run)]


def _runs(numbers: Sequence[int], member: int) -> list[Run]:
    rows = [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    return [(at, start, length) for who, at, start, length in rows if who == member]


def _visible(left: int | None, right: int | None, rule: str, leaves: Sequence[Tensor]) -> Visible:
    return Visible(left, right, rule, tuple(leaves))


class Hops:
    """Tensors on their way round the ring: each hop gives what the member behind sent."""

    def __init__(self, group: str, count: int) -> None:
        self.count = count
        self.group = group
        self.pg = resolve(group) if group else None
        self.me = dist.get_rank(self.pg) if self.pg is not None else 0
        if count > 1:
            assert self.pg is not None
            peers = dist.get_process_group_ranks(self.pg)
            self.next, self.last = peers[(self.me + 1) % count], peers[(self.me - 1) % count]

    def source(self, hop: int) -> int:
        """The member whose keys are here at `hop`."""
        return (self.me - hop) % self.count

    def post(self, x: Tensor, what: str) -> tuple[Tensor, list[Any]]:
        """Send `x` on and receive its like; wait on the works before reading or writing either."""
        got = torch.empty_like(x)
        ops = [
            dist.P2POp(dist.isend, x, self.next, self.pg),
            dist.P2POp(dist.irecv, got, self.last, self.pg),
        ]
        wire.sent(what, x.numel() * x.element_size())
        return got, guarded(self.name(what), self.group, lambda: dist.batch_isend_irecv(ops))

    def wait(self, works: list[Any], what: str) -> None:
        for work in works:
            guarded(self.name(what), self.group, work.wait)

    def name(self, what: str) -> str:
        return f"a hop of the {what} between ranks {self.last} and {self.next}"


@torch.library.custom_op("quire::ring_attention", mutates_args=())
def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    leaves: Sequence[Tensor],
    rule: str,
    left: int | None,
    right: int | None,
    scale: float,
    q_runs: Sequence[int],
    k_runs: Sequence[int],
    hops: int,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Out `[B, H, s, D]` (stored `[B, s, H, D]`) and fp32 lse `[B, H, s]`.

    `q` `[B, H, s, D]`, `k` and `v` `[B, KV, t, D]`, H a multiple of KV.
    """
    visible, ring = _visible(left, right, rule, leaves), Hops(group, hops)
    mine = _runs(q_runs, ring.me)
    total = Accumulator(q)
    for hop, (keys, values) in _travel(ring, k, v):
        work = blocks(visible, mine, _runs(k_runs, ring.source(hop)), q)
        forward(total, q, keys, values, work, scale)
    return total.result(q.dtype)


def _travel(ring: Hops, k: Tensor, v: Tensor) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """K and V as each hop has them, the next hop under way while this one is used."""
    if ring.count == 1:
        yield 0, (k, v)
        return
    here = torch.stack([k, v])
    for hop in range(ring.count):
        last = hop == ring.count - 1
        there, works = (here, []) if last else ring.post(here, "ring")
        yield hop, (here[0], here[1])
        ring.wait(works, "ring")
        here = there


@ring_attention.register_fake
def _(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    batch, heads, rows, depth = q.shape
    out = q.new_empty((batch, rows, heads, depth)).transpose(1, 2)
    return out, q.new_empty((batch, heads, rows), dtype=torch.float32)


@torch.library.custom_op("quire::ring_attention_backward", mutates_args=())
def ring_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    leaves: Sequence[Tensor],
    rule: str,
    left: int | None,
    right: int | None,
    scale: float,
    q_runs: Sequence[int],
    k_runs: Sequence[int],
    hops: int,
    group: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Those of k and v gather as they travel, and end at home; in fp32."""
    visible, ring = _visible(left, right, rule, leaves), Hops(group, hops)
    mine = _runs(q_runs, ring.me)
    dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    moving = torch.zeros((2, *k.shape), dtype=torch.float32, device=q.device)
    works: list[Any] = []
    arriving = moving
    for hop, (keys, values) in _travel(ring, k, v):
        # What this block adds is worked out while the gradients so far are on their way here.
        share = torch.zeros_like(moving) if works else moving
        work = blocks(visible, mine, _runs(k_runs, ring.source(hop)), q)
        backward((dq, share[0], share[1]), grad, q, keys, values, out, lse, work, scale)
        if works:
            ring.wait(works, "ring gradients")
            share += arriving
        moving = share
        if ring.count > 1:
            arriving, works = ring.post(moving, "ring gradients")
    if works:
        ring.wait(works, "ring gradients")
        moving = arriving
    # Outputs of a custom op may not share memory.
    return dq.to(q.dtype), moving[0].to(k.dtype, copy=True), moving[1].to(v.dtype, copy=True)


@ring_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, leaves, *rest = inputs
    ctx.save_for_backward(q, k, v, *output, *leaves)
    ctx.rest = rest
    ctx.set_materialize_grads(False)


def _grads(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, out, lse, *leaves = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(out)
    found = ring_attention_backward(grad, q, k, v, out, lse, leaves, *ctx.rest)
    return (*found, [None] * len(leaves), *(None for _ in ctx.rest))


ring_attention.register_autograd(_grads, setup_context=_setup)
