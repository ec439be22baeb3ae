"""What a sharded module's code calls: collectives and rank-local ops, each with its gradient.

Gradients follow one convention: every collective's backward is its true transpose, as if the loss
were the sum of the ranks' losses. A parameter's gradient on one rank is then P times that rank's
share, and the *mean* over ranks, which DDP and FSDP2 take by default, is exact.

    all_to_all ↔ all_to_all    gather_rows ↔ reduce-scatter    sum_ranks ↔ sum_ranks
    my_rows ↔ zero padding     place_rows ↔ taking rows

The rank is read when an op runs: every rank runs the same graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quire.plan.layout import Layout, local_rows  # noqa: F401  (called as ranks.local_rows)
from quire.runtime.draws import drawn  # noqa: F401  (called as ranks.drawn)
from quire.runtime.failure import guarded, resolve
from quire.runtime.row_parts import in_parts  # noqa: F401  (called as ranks.in_parts)

_c10d: Any = torch.ops._c10d_functional


def rank_of(group: str) -> int:
    return dist.get_rank(resolve(group))


def _all_to_all(x: Tensor, group: str, what: str) -> Tensor:
    sizes = [1] * x.shape[0]
    x = x.contiguous()
    return guarded(
        what, group, lambda: _c10d.wait_tensor(_c10d.all_to_all_single(x, sizes, sizes, group))
    )


def all_reduce(x: Tensor, how: str, group: str, what: str) -> Tensor:
    """`x` joined over the ranks by `how`: sum, max or min. It has no gradient."""
    x = x.contiguous()
    return guarded(what, group, lambda: _c10d.wait_tensor(_c10d.all_reduce(x, how, group)))


def _all_gather(x: Tensor, ranks: int, group: str, what: str) -> Tensor:
    return guarded(
        what,
        group,
        lambda: _c10d.wait_tensor(_c10d.all_gather_into_tensor(x.contiguous(), ranks, group)),
    )


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group, "an all-to-all of attention")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _all_to_all(grads[0], ctx.group, "an all-to-all of attention's gradients"), None


class _SumRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return all_reduce(x, "sum", group, "an all-reduce of a sum or loss")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return all_reduce(grads[0], "sum", ctx.group, "an all-reduce of a sum's gradient"), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int, group: str) -> Tensor:
        ctx.ranks, ctx.group = ranks, group
        return _all_gather(x, ranks, group, "an all-gather of rows")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad, ranks, group = grads[0].contiguous(), ctx.ranks, ctx.group
        back = guarded(
            "a reduce-scatter of rows' gradients",
            group,
            lambda: _c10d.wait_tensor(_c10d.reduce_scatter_tensor(grad, "sum", ranks, group)),
        )
        return back, None, None


def all_to_all(x: Tensor, group: str) -> Tensor:
    """`x` `[P, …]`: part p goes to rank p; the result holds what each rank sent."""
    return _applied(_AllToAll, x, group)


def sum_ranks(x: Tensor, group: str) -> Tensor:
    """The sum of `x` over the ranks, on each of them."""
    return _applied(_SumRanks, x, group)


def all_gather(x: Tensor, ranks: int, group: str) -> Tensor:
    """All ranks' `x` `[n, …]` laid end to end, `[P·n, …]`."""
    return _applied(_AllGather, x, ranks, group)


def _applied(function: Any, *args: Any) -> Tensor:
    return function.apply(*args)


def max_ranks(x: Tensor, group: str, largest: bool = True) -> Tensor:
    """The elementwise maximum (or minimum) over the ranks; where ranks tie, they share the
    gradient."""
    best = x.detach().contiguous()
    best = all_reduce(best, "max" if largest else "min", group, "an all-reduce of a maximum")
    hit = (x.detach() == best).to(x.dtype)
    if not x.dtype.is_floating_point:
        return best
    count = sum_ranks(hit, group)
    # The value is `best`; the gradient that of the sum of the winners' mean.
    mine = torch.where(hit > 0, x / count, torch.zeros_like(x))
    return sum_ranks(mine, group)


def gather_rows(
    x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str
) -> Tensor:
    """The whole sequence, in its own order, from each rank's rows of `dim`.

    `dim` holds `outer` blocks of a rank's rows; the result's holds `outer` blocks of `size`.
    """
    layout = Layout(size, ranks, ring)
    rows = _unfold(x, dim, outer).movedim(dim + 1, 0).contiguous()
    everything = all_gather(rows, ranks, group)
    runs = layout.natural()
    if len(runs) == 1:
        everything = everything.narrow(0, runs[0][0], size)
    else:
        everything = torch.cat([everything.narrow(0, at, n) for at, _, n in runs])
    return _fold(everything.movedim(0, dim + 1), dim, outer)


def _unfold(x: Tensor, dim: int, outer: int) -> Tensor:
    return x.unflatten(dim, (outer, x.shape[dim] // outer))


def _fold(x: Tensor, dim: int, outer: int) -> Tensor:
    shape = list(x.shape)
    shape[dim : dim + 2] = [shape[dim] * shape[dim + 1]]
    return x.reshape(shape)


@torch.library.custom_op("quire::my_rows", mutates_args=())
def my_rows(
    x: Tensor,
    dim: int,
    outer: int,
    size: int,
    ranks: int,
    ring: int,
    group: str,
    fill: float | None,
) -> Tensor:
    """This rank's rows of the whole `x`, whose `dim` holds `outer` blocks of `size`.

    Rows past the end of the sequence hold `fill`, or (None) what its last row holds: values that
    any op of the model can be given, such as places in a table.
    """
    layout = Layout(size, ranks, ring)
    blocks = _unfold(x, dim, outer)
    shape = list(blocks.shape)
    shape[dim + 1] = layout.local
    if fill is None:
        out = (
            blocks.narrow(dim + 1, size - 1, 1)
            .expand(shape)
            .clone(memory_format=torch.contiguous_format)
        )
    else:
        out = x.new_full(shape, fill)
    for at, start, length in layout.runs(rank_of(group)):
        out.narrow(dim + 1, at, length).copy_(blocks.narrow(dim + 1, start, length))
    return _fold(out, dim, outer)


@my_rows.register_fake
def _(x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str, fill: Any):
    shape = list(x.shape)
    shape[dim] = outer * Layout(size, ranks, ring).local
    return x.new_empty(shape)


@torch.library.custom_op("quire::place_rows", mutates_args=())
def place_rows(
    x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str
) -> Tensor:
    """The transpose of `my_rows`: this rank's rows at their places in the sequence, 0 elsewhere."""
    layout = Layout(size, ranks, ring)
    blocks = _unfold(x, dim, outer)
    shape = list(blocks.shape)
    shape[dim + 1] = size
    out = x.new_zeros(shape)
    for at, start, length in layout.runs(rank_of(group)):
        out.narrow(dim + 1, start, length).copy_(blocks.narrow(dim + 1, at, length))
    return _fold(out, dim, outer)


@place_rows.register_fake
def _(x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str):
    shape = list(x.shape)
    shape[dim] = outer * size
    return x.new_empty(shape)


@torch.library.custom_op("quire::fill_rows", mutates_args=())
def fill_rows(
    x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str, fill: float
) -> Tensor:
    """This rank's rows with those past the end of the sequence set to `fill`."""
    layout = Layout(size, ranks, ring)
    blocks = _unfold(x, dim, outer)
    out = torch.full_like(blocks, fill, memory_format=torch.contiguous_format)
    for at, _, length in layout.runs(rank_of(group)):
        out.narrow(dim + 1, at, length).copy_(blocks.narrow(dim + 1, at, length))
    return _fold(out, dim, outer)


@fill_rows.register_fake
def _(x: Tensor, dim: int, outer: int, size: int, ranks: int, ring: int, group: str, fill: float):
    return x.new_empty(x.shape)


@torch.library.custom_op("quire::take_rows", mutates_args=())
def take_rows(
    x: Tensor, dim: int, first: int, count: int, size: int, ranks: int, ring: int, group: str
) -> Tensor:
    """The rows `first … first + count` of the sequence as far as this rank holds them, else 0."""
    out = x.new_zeros([count if d == dim else n for d, n in enumerate(x.shape)])
    for at, lo, n in _held(first, count, Layout(size, ranks, ring), rank_of(group)):
        out.narrow(dim, lo - first, n).copy_(x.narrow(dim, at, n))
    return out


@take_rows.register_fake
def _(x: Tensor, dim: int, first: int, count: int, size: int, ranks: int, ring: int, group: str):
    return x.new_empty([count if d == dim else n for d, n in enumerate(x.shape)])


@torch.library.custom_op("quire::put_rows", mutates_args=())
def put_rows(
    x: Tensor, dim: int, first: int, count: int, size: int, ranks: int, ring: int, group: str
) -> Tensor:
    """The transpose of `take_rows`."""
    layout = Layout(size, ranks, ring)
    out = x.new_zeros([layout.local if d == dim else n for d, n in enumerate(x.shape)])
    for at, lo, n in _held(first, count, layout, rank_of(group)):
        out.narrow(dim, at, n).copy_(x.narrow(dim, lo - first, n))
    return out


@put_rows.register_fake
def _(x: Tensor, dim: int, first: int, count: int, size: int, ranks: int, ring: int, group: str):
    local = Layout(size, ranks, ring).local
    return x.new_empty([local if d == dim else n for d, n in enumerate(x.shape)])


def _held(first: int, count: int, layout: Layout, rank: int) -> list[tuple[int, int, int]]:
    found = []
    for at, start, length in layout.runs(rank):
        lo, hi = max(start, first), min(start + length, first + count)
        if lo < hi:
            found.append((at + lo - start, lo, hi - lo))
    return found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rest = inputs[1:]


def _no_grads(count: int) -> tuple[None, ...]:
    return (None,) * count


torch.library.register_autograd(
    "quire::my_rows",
    lambda ctx, g: (place_rows(g, *ctx.rest[:-1]), *_no_grads(len(ctx.rest))),
    setup_context=_keep,
)
torch.library.register_autograd(
    "quire::place_rows",
    lambda ctx, g: (my_rows(g, *ctx.rest, 0.0), *_no_grads(len(ctx.rest))),
    setup_context=_keep,
)
torch.library.register_autograd(
    "quire::fill_rows",
    lambda ctx, g: (fill_rows(g, *ctx.rest[:-1], 0.0), *_no_grads(len(ctx.rest))),
    setup_context=_keep,
)
torch.library.register_autograd(
    "quire::take_rows",
    lambda ctx, g: (put_rows(g, *ctx.rest), *_no_grads(len(ctx.rest))),
    setup_context=_keep,
)
torch.library.register_autograd(
    "quire::put_rows",
    lambda ctx, g: (take_rows(g, *ctx.rest), *_no_grads(len(ctx.rest))),
    setup_context=_keep,
)


def fixed_rows(
    x: Tensor, dim: int, first: int, count: int, size: int, ranks: int, ring: int, group: str
) -> Tensor:
    """The rows `first … first + count` of the sequence, on every rank."""
    return sum_ranks(take_rows(x, dim, first, count, size, ranks, ring, group), group)


def join_sum(x: Tensor, scale: float, group: str) -> Tensor:
    """The sum of `x` over the ranks times `scale`. Half types are summed in fp32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    total = sum_ranks(wide, group)
    return (total if scale == 1.0 else total * scale).to(x.dtype)


def cross_entropy(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    group: str,
) -> Tensor:
    """Cross entropy of rows spread over the ranks: their sum, or (`reduction` 1) that over the
    number, or weight, of all rows that count on all ranks. Padding rows have the target
    `ignore_index`."""
    total, count = _summed(scores, target, weight, ignore_index, label_smoothing)
    return _joined(total, count, reduction, scores.dtype, group)


def cross_entropy_in_parts(
    rows: Tensor,
    make_scores: Callable[[Tensor], Tensor],
    parts: int,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    group: str,
) -> Tensor:
    """The same of the scores `make_scores(rows)`, `[n, width]` → `[n, classes]`, made for a part of
    the rows at a time, and again in backward: only one part's scores are there at once."""

    def some(rows: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return _summed(make_scores(rows), target, weight, ignore_index, label_smoothing)

    rows, target = rows.flatten(0, -2), target.flatten()
    pairs = zip(rows.tensor_split(parts), target.tensor_split(parts), strict=True)
    found = [checkpoint(some, a, b, use_reentrant=False) for a, b in pairs]
    total = torch.stack([t for t, _ in found]).sum()
    count = torch.stack([c for _, c in found]).sum()
    return _joined(total, count, reduction, rows.dtype, group)


def _summed(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """The sum of the rows' losses, and the number, or weight, of the rows that count."""
    total = torch.nn.functional.cross_entropy(
        scores,
        target,
        weight,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    valid = target != ignore_index
    if weight is None:
        return total.to(wide), valid.sum().to(wide)
    counted = torch.where(valid, weight[torch.where(valid, target, 0)], 0)
    return total.to(wide), counted.sum().to(wide)


def _joined(total: Tensor, count: Tensor, reduction: int, dtype: torch.dtype, group: str) -> Tensor:
    if reduction != 1:
        return sum_ranks(total, group).to(dtype)
    both = sum_ranks(torch.stack([total, count]), group)
    return (both[0] / both[1]).to(dtype)
