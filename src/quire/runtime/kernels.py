"""Ops that write into a given buffer, for emitted code: each takes its op's arguments and `out`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from quire.flow.outs import ROWS_BLOCK

_nn: Any = getattr(torch._C, "_nn")  # noqa: B009  (absent from torch's stubs)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Tensor:
    """`x` [..., K], `weight` [N, K], `out` [..., N]."""
    w = weight.t()
    for rows, into in _blocks(x, out):
        flat = _rows(into, rows.shape[0])
        if flat is not None:
            _row_product(rows, w, bias, flat)
        else:
            made = torch.mm(rows, w) if bias is None else torch.addmm(bias, rows, w)
            into.copy_(made.view(into.shape))
    return out


def linear_add(added: Tensor, x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    """`added` + `x` `weight`ᵀ, with `added` and `out` [..., N]; these may be one tensor."""
    w = weight.t()
    for rows, into, more in _blocks(x, out, added):
        flat, flat_more = _rows(into, rows.shape[0]), _rows(more, rows.shape[0])
        if flat is not None and flat_more is not None:
            torch.addmm(flat_more, rows, w, out=flat)
        else:
            torch.add(more, torch.mm(rows, w).view(into.shape), out=into)
    return out


def _blocks(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`x` as rows, all at once or, where they or those of `others` do not lie together, in blocks
    that are copied; with the matching parts of `others`."""
    if x.dim() < 2:
        yield x.unsqueeze(0), *(t.unsqueeze(0) for t in others)
        return
    count = x.shape[:-1].numel()
    flat = _rows(x, count)
    if flat is not None and all(_rows(t, count) is not None for t in others):
        yield flat, *others
        return
    widest = max(t.shape[-1] for t in (x, *others))
    each = x.shape[1:-1].numel() * widest * x.element_size()
    if each > ROWS_BLOCK or x.shape[0] == 1:
        for parts in zip(*(t.unbind(0) for t in (x, *others)), strict=True):
            yield from _blocks(*parts)
        return
    step = max(1, ROWS_BLOCK // max(each, 1))
    for parts in zip(*(t.split(step) for t in (x, *others)), strict=True):
        yield parts[0].reshape(-1, x.shape[-1]), *parts[1:]


def _rows(x: Tensor, rows: int) -> Tensor | None:
    """`x` as [rows, last] without a copy, or None."""
    step, size = None, 1
    for length, stride in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1]), strict=True):
        if length == 1:
            continue
        if step is not None and stride != step * size:
            return None
        step = stride if step is None else step
        size *= length
    return x.view(rows, x.shape[-1])


def _row_product(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, w, out=out)
    else:
        torch.addmm(bias, x, w, out=out)


def matmul(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """Any of `torch.matmul`'s forms; batched products on merged batch dims where these merge."""
    if a.dim() == b.dim() >= 3 and a.shape[:-2] == b.shape[:-2] == out.shape[:-2]:
        batch = out.shape[:-2].numel()
        merged = [_batched(t, batch) for t in (a, b, out)]
        if all(t is not None for t in merged):
            torch.bmm(merged[0], merged[1], out=merged[2])  # type: ignore[arg-type]
            return out
    return torch.matmul(a, b, out=out)


def _batched(x: Tensor, batch: int) -> Tensor | None:
    step, size = None, 1
    for length, stride in zip(reversed(x.shape[:-2]), reversed(x.stride()[:-2]), strict=True):
        if length == 1:
            continue
        if step is not None and stride != step * size:
            return None
        step = stride if step is None else step
        size *= length
    return x.view(batch, *x.shape[-2:])


def softmax(
    x: Tensor, dim: int, half_to_float: Any = None, *, dtype: Any = None, out: Tensor
) -> Tensor:
    return torch.softmax(x, dim, dtype=out.dtype, out=out)


def gelu(x: Tensor, *, approximate: str = "none", out: Tensor) -> Tensor:
    return _nn.gelu(x, approximate=approximate, out=out)


def silu(x: Tensor, *, out: Tensor) -> Tensor:
    return _nn.silu(x, out=out)


def relu(x: Tensor, *, out: Tensor) -> Tensor:
    return torch.clamp_min(x, 0, out=out)


def embedding(weight: Tensor, ids: Tensor, *_: Any, out: Tensor) -> Tensor:
    torch.index_select(weight, 0, ids.reshape(-1), out=out.view(-1, weight.shape[-1]))
    return out


def copy(x: Tensor, *, out: Tensor, **_: Any) -> Tensor:
    return out.copy_(x)


def cut(lo: int, hi: int, size: int) -> tuple[int, int]:
    """The interval `[lo, hi)` without what lies outside `[0, size)`; never of negative length."""
    lo = min(max(lo, 0), size)
    return lo, min(max(hi, lo), size)


def part(
    x: Tensor, dim: int, lo: int, hi: int, outer: int = 1, fill: float | None = None
) -> Tensor:
    """`x` at the indices `[lo, hi)` of `dim`, in each of its `outer` blocks.

    Positions outside the block are cut off, or, where `fill` is given, hold that value.
    """
    if outer > 1:
        blocks = x.unflatten(dim, (outer, x.shape[dim] // outer))
        return part(blocks, dim + 1, lo, hi, fill=fill).flatten(dim, dim + 1)
    size = x.shape[dim]
    first, last = cut(lo, hi, size)
    inside = x.narrow(dim, first, last - first)
    if fill is None or (first == lo and last == hi):
        return inside
    before = min(max(-lo, 0), hi - lo)
    after = hi - lo - before - (last - first)
    pad = [0, 0] * (x.dim() - 1 - dim) + [before, after]
    return torch.nn.functional.pad(inside, pad, value=fill)


def put(out: Tensor, x: Tensor, dim: int, lo: int, hi: int, outer: int = 1) -> None:
    """Write `x` to the indices `[lo, hi)` of `dim` of `out`, in each of its `outer` blocks."""
    if outer > 1:
        blocks = out.unflatten(dim, (outer, out.shape[dim] // outer))
        put(blocks, x.unflatten(dim, (outer, x.shape[dim] // outer)), dim + 1, lo, hi)
    else:
        out.narrow(dim, lo, hi - lo).copy_(x)
