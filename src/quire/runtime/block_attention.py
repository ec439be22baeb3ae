"""Attention between runs of queries and runs of keys, forward and backward, merged in fp32.

One block at a time: a run of queries against a run of keys, through the device's fused kernel,
which also gives the logsumexp of each row. Blocks join by

    out ← out − sigmoid(lse_b − lse)·(out − out_b)        lse ← logaddexp(lse, lse_b)

(ring-flash-attention's form of the online softmax). Backward replays each block with the joined
out and lse, so that every block's weights are those of the whole row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import attrs
import torch
from torch import Tensor

from quire.plan.layout import Run

aten: Any = torch.ops.aten
MASK_ELEMENTS = 1 << 22
"""Elements of one masked tile: what bounds the memory of a mask."""


@attrs.frozen(eq=False)
class Visible:
    """Which keys a query sees: those `i − left … i + right` (None: no end on that side), cut down
    or shifted by `rule`, an expression over `leaves`.

    A leaf broadcasts to `[batch, heads, queries, keys]` and is whole in the sequence: `[…, S, 1]`
    by query, `[…, 1, S]` by key. The rule's value is a bool mask or what is added to the scores.
    """

    left: int | None
    right: int | None
    rule: str = ""
    leaves: Sequence[Tensor] = ()

    def band(self, q: Run, k: Run) -> str:
        """ "all", "none" or "some" of the keys of run `k` are within the band of run `q`; "causal"
        where it is the lower triangle of a square."""
        q_first, q_last, k_first, k_last = q[1], q[1] + q[2] - 1, k[1], k[1] + k[2] - 1
        if self.right is not None and k_first > q_last + self.right:
            return "none"
        if self.left is not None and k_last < q_first - self.left:
            return "none"
        in_right = self.right is None or k_last <= q_first + self.right
        in_left = self.left is None or k_first >= q_last - self.left
        if in_right and in_left:
            return "all"
        if in_left and self.right == 0 and q_first == k_first and q[2] == k[2]:
            return "causal"
        return "some"

    def tile(self, q: Run, k: Run, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What is added to the scores of a tile, `[…, queries, keys]`; None for nothing."""
        bias: Tensor | None = None
        if self.band(q, k) != "all":
            rows = torch.arange(q[1], q[1] + q[2], device=device)[:, None]
            keys = torch.arange(k[1], k[1] + k[2], device=device)[None, :]
            seen = torch.ones((), dtype=torch.bool, device=device)
            if self.right is not None:
                seen = seen & (keys <= rows + self.right)
            if self.left is not None:
                seen = seen & (keys >= rows - self.left)
            bias = _additive(seen, dtype)
        if self.rule:
            cut = [_cut(leaf, q, k) for leaf in self.leaves]
            found = compiled(self.rule)(*cut)
            shape = (*found.shape[:-2], q[2], k[2]) if found.dim() >= 2 else (q[2], k[2])
            more = _additive(found, dtype).expand(shape)
            bias = more if bias is None else bias + more
        return bias


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros((), dtype=dtype, device=mask.device).masked_fill(~mask, -math.inf)


def _cut(leaf: Tensor, q: Run, k: Run) -> Tensor:
    if leaf.dim() >= 2 and leaf.shape[-2] > 1:
        leaf = leaf.narrow(-2, q[1], q[2])
    if leaf.dim() >= 1 and leaf.shape[-1] > 1:
        leaf = leaf.narrow(-1, k[1], k[2])
    return leaf


@lru_cache(maxsize=256)
def compiled(rule: str) -> Callable[..., Tensor]:
    """`rule`, such as `"le.Tensor(x1, x0)"`, as a function of its leaves x0, x1, …"""
    names = {f"{n}": getattr(aten, n) for n in _op_names(rule)}
    count = 1 + max((int(x) for x in _leaf_numbers(rule)), default=-1)
    args = ", ".join(f"x{i}" for i in range(count))
    scope: dict[str, Any] = {**names, "__builtins__": {}, "inf": math.inf}
    return eval(f"lambda {args}: {rule}", scope)


def _op_names(rule: str) -> set[str]:
    import_free = rule.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return (
        {w.partition(".")[0] for w in import_free if w[0].isalpha() or w[0] == "_"}
        - {
            "True",
            "False",
            "inf",
        }
        - {w for w in import_free if w[0] == "x" and w[1:].isdigit()}
    )


def _leaf_numbers(rule: str) -> list[str]:
    words = rule.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return [w[1:] for w in words if w[0] == "x" and w[1:].isdigit()]


@attrs.frozen(eq=False)
class Block:
    """A run of queries against a run of keys, and how the kernel is to see it."""

    q: Run
    k: Run
    causal: bool
    bias: Tensor | None


def blocks(
    visible: Visible, q_runs: Sequence[Run], k_runs: Sequence[Run], like: Tensor
) -> Iterator[Block]:
    """The blocks with work in them. Tiles of a mask are at most MASK_ELEMENTS large."""
    for q in q_runs:
        for k in k_runs:
            kind = visible.band(q, k)
            if kind == "none":
                continue
            if not visible.rule and kind in ("all", "causal"):
                yield Block(q, k, kind == "causal", None)
                continue
            rows = max(1, min(q[2], MASK_ELEMENTS // k[2]))
            for first in range(0, q[2], rows):
                part = (q[0] + first, q[1] + first, min(rows, q[2] - first))
                keys = _needed(visible, part, k)
                if keys is None:
                    continue
                bias = visible.tile(part, keys, like.dtype, like.device)
                if bias is None or not bool((bias == 0).all()):
                    if bias is not None and bool((bias == -math.inf).all()):
                        continue
                    yield Block(part, keys, False, bias)
                else:
                    yield Block(part, keys, False, None)


def _needed(visible: Visible, q: Run, k: Run) -> Run | None:
    """The part of the keys `k` that the band lets any query of `q` see."""
    lo, hi = k[1], k[1] + k[2]
    if visible.right is not None:
        hi = min(hi, q[1] + q[2] + visible.right)
    if visible.left is not None:
        lo = max(lo, q[1] - visible.left)
    return (k[0] + lo - k[1], lo, hi - lo) if lo < hi else None


class Accumulator:
    """The joined out (fp32) and lse of a rank's queries, block after block."""

    def __init__(self, q: Tensor) -> None:
        batch, heads, rows, depth = q.shape
        self.out = torch.zeros((batch, rows, heads, depth), dtype=torch.float32, device=q.device)
        self.lse = torch.full((batch, heads, rows), -math.inf, device=q.device)

    def add(self, q: Run, out: Tensor, lse: Tensor) -> None:
        at = slice(q[0], q[0] + q[2])
        old_out = self.out[:, at].transpose(1, 2)
        old = self.lse[:, :, at]
        # Where neither has a key both are −inf, and their difference is not a number.
        gap = torch.where(lse == -math.inf, -math.inf, lse - old)
        old_out -= torch.sigmoid(gap).unsqueeze(-1) * (old_out - out)
        self.lse[:, :, at] = torch.logaddexp(old, lse)

    def result(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.out.to(dtype).transpose(1, 2), self.lse


def forward(
    into: Accumulator,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    work: Iterator[Block],
    scale: float,
) -> None:
    """Add the blocks in `work` of queries q `[B, H, s, D]` and keys k, v `[B, KV, t, D]`."""
    for block in work:
        qs, ks, vs = _rows(q, block.q), _rows(k, block.k), _rows(v, block.k)
        out, lse = block_forward(qs, ks, vs, block.bias, block.causal, scale)
        if block.bias is not None:
            dead = (block.bias == -math.inf).all(-1)
            lse = lse.masked_fill(dead, -math.inf)
        into.add(block.q, out, lse)


def backward(
    grads: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    work: Iterator[Block],
    scale: float,
) -> None:
    """Add the blocks' shares to the fp32 gradients of q, k, v (laid out as these)."""
    lse = torch.where(lse == -math.inf, 0.0, lse)
    for block in work:
        rows = slice(block.q[0], block.q[0] + block.q[2])
        found = block_backward(
            _rows(grad_out, block.q),
            _rows(q, block.q),
            _rows(k, block.k),
            _rows(v, block.k),
            _rows(out, block.q),
            lse[:, :, rows],
            block.bias,
            block.causal,
            scale,
        )
        for grad, run, more in zip(grads, (block.q, block.k, block.k), found, strict=True):
            _rows(grad, run).add_(more)


def _rows(x: Tensor, run: Run) -> Tensor:
    return x.narrow(2, run[0], run[2])


def block_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Out `[B, H, s, D]` and the fp32 logsumexp `[B, H, s]` of each row."""
    if q.device.type == "cpu" and q.dtype is not torch.float64:
        bias = None if bias is None else bias.contiguous()
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse
    if q.device.type == "cuda" and bias is None and _has_flash(q):
        k, v = _repeated(k, q), _repeated(v, q)
        found = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return found[0], found[1]
    return _plain_forward(q, k, v, bias, causal, scale)


def block_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v from this block, given the out and lse of whole rows."""
    if q.device.type == "cpu" and q.dtype is not torch.float64:
        bias = None if bias is None else bias.contiguous()
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse.contiguous(), 0.0, causal, attn_mask=bias, scale=scale
        )
    if q.device.type == "cuda" and bias is None and _has_flash(q):
        groups = q.shape[1] // k.shape[1]
        kr, vr = _repeated(k, q), _repeated(v, q)
        rng = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, kr, vr, out.contiguous(), lse.contiguous(), None, None),
            *(q.shape[2], k.shape[2], 0.0, causal, rng, rng.new_zeros(())),
            scale=scale,
        )
        return dq, _summed(dk, groups), _summed(dv, groups)
    return _plain_backward(grad, q, k, v, out, lse, bias, causal, scale)


def _has_flash(q: Tensor) -> bool:
    return q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0


def _repeated(x: Tensor, q: Tensor) -> Tensor:
    groups = q.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _summed(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2)


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    s = (q.float() @ _repeated(k, q).float().transpose(-1, -2)) * scale
    if causal:
        rows, keys = s.shape[-2:]
        s = s.masked_fill(
            ~torch.ones(rows, keys, dtype=torch.bool, device=s.device).tril(), -math.inf
        )
    return s if bias is None else s + bias.float()


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    s = _scores(q, k, bias, causal, scale)
    lse = s.logsumexp(-1)
    p = torch.exp(s - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1))
    return (p @ _repeated(v, q).float()).to(q.dtype), lse


def _plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    groups = q.shape[1] // k.shape[1]
    p = torch.exp(_scores(q, k, bias, causal, scale) - lse.unsqueeze(-1))
    g = grad.float()
    dv = p.transpose(-1, -2) @ g
    dp = g @ _repeated(v, q).float().transpose(-1, -2)
    ds = p * (dp - (g * out.float()).sum(-1, keepdim=True)) * scale
    dq = ds @ _repeated(k, q).float()
    dk = ds.transpose(-1, -2) @ q.float()
    return dq.to(q.dtype), _summed(dk, groups).to(k.dtype), _summed(dv, groups).to(v.dtype)
