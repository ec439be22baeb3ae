"""Index meaning of what makes, views and indexes tensors. See `index_table`."""

from __future__ import annotations

from typing import Any

import torch

from quire.rewrite.index_table import (
    Args,
    Constant,
    Function,
    Meaning,
    at_index,
    aten,
    dim_of,
    read,
    rule,
)
from quire.rewrite.terms import Affine, Box, Unknown, index, of_size

# --- makers ---------------------------------------------------------------------------------


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    start, step = args.get("start", 0), args.get("step", 1)
    if isinstance(step, float) or isinstance(start, float) or isinstance(args["end"], float):
        raise Unknown("a range of floats")
    if not isinstance(step, int):
        raise Unknown("a step that is a length")
    return of_size(start) + index(0) * step


@rule(aten.full.default, aten.full_like.default, aten.new_full.default, reads_values=False)
def _full(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return Constant(args["fill_value"]).value


@rule(aten.scalar_tensor.default)
def _scalar_tensor(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return Constant(args["s"]).value


def _all(value: int) -> Function:
    return lambda args, box, dtype: Affine(value)


rule(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, reads_values=False)(
    _all(0)
)
rule(aten.ones.default, aten.ones_like.default, aten.new_ones.default, reads_values=False)(_all(1))


# --- views and copies -----------------------------------------------------------------------


@rule(
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.expand.default,
)
def _same(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    return read(args["self"], box)


@rule(aten.unsqueeze.default)
def _unsqueeze(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    new = dim_of(args, "dim", len(box.shape))
    ndim = len(args["self"].shape)
    return at_index(args["self"], {d: index(d + (d >= new)) for d in range(ndim)}, box)


@rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
)
def _view(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    # Dims of size 1 may come and go; the others must keep their order and size.
    source = args["self"].shape
    kept = [d for d, size in enumerate(source) if size != 1]
    new = [d for d, size in enumerate(box.shape) if size != 1]
    if [source[d] for d in kept] != [box.shape[d] for d in new]:
        if isinstance(args["self"].value, bool | float):
            return args["self"].value
        raise Unknown("a view that merges or splits dims")
    at = {d: Affine(0) for d in range(len(source))}
    at.update({d: index(n) for d, n in zip(kept, new, strict=True)})
    return at_index(args["self"], at, box)


@rule(aten.permute.default)
def _permute(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    ndim = len(box.shape)
    return at_index(
        args["self"], {int(d) % ndim: index(n) for n, d in enumerate(args["dims"])}, box
    )


@rule(aten.transpose.int, aten.t.default)
def _transpose(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    ndim = len(box.shape)
    at = {d: index(d) for d in range(ndim)}
    if ndim >= 2:
        a, b = int(args.get("dim0", 0)) % ndim, int(args.get("dim1", 1)) % ndim
        at[a], at[b] = index(b), index(a)
    return at_index(args["self"], at, box)


def _position(at: Any, size: Any, box: Box) -> Affine:
    """A start or index that may count from the end, as a position from the front."""
    place = of_size(0 if at is None else at)
    low = box.min(place)
    if low is not None and low >= 0:
        return place
    high = box.max(place)
    if high is None or high >= 0:
        raise Unknown("a position that counts from either end")
    place = place + of_size(size)
    low = box.min(place)
    if low is None or low < 0:
        raise Unknown("a position before the first element")
    return place


@rule(aten.slice.Tensor)
def _slice(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    operand = args["self"]
    dim = dim_of(args, "dim", len(box.shape))
    if not isinstance(args["step"], int):
        raise Unknown("a step that is a length")
    start = _position(args["start"], operand.shape[dim], box)
    at = {d: index(d) for d in range(len(box.shape))}
    at[dim] = start + index(dim) * args["step"]
    return at_index(operand, at, box)


@rule(aten.select.int)
def _select(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    operand = args["self"]
    dim = dim_of(args, "dim", len(operand.shape))
    at = {d: index(d - (d > dim)) for d in range(len(operand.shape))}
    at[dim] = _position(args["index"], operand.shape[dim], box)
    return at_index(operand, at, box)


@rule(aten.index.Tensor)
def _index(args: Args, box: Box, dtype: torch.dtype) -> Meaning:
    operand, indices = args["self"], args["indices"]
    used = [d for d, place in enumerate(indices) if place is not None]
    if used != list(range(used[0], used[-1] + 1)):
        raise Unknown("index tensors that stand apart")
    width = max(len(indices[d].shape) for d in used)
    if any(indices[d].dtype == torch.bool for d in used):
        raise Unknown("a mask as an index")
    at: dict[int, Affine] = {}
    for dim in range(len(operand.shape)):
        if dim not in used:
            at[dim] = index(dim if dim < used[0] else dim - len(used) + width)
            continue
        place = read_block(indices[dim], used[0], width, box)
        low = box.min(place) if isinstance(place, Affine) else None
        if low is None or low < 0:
            raise Unknown("an index that may be negative, or has cases")
        at[dim] = place
    return at_index(operand, at, box)


def read_block(operand: Any, first: int, width: int, box: Box) -> Any:
    """As `read`, for an operand that broadcasts to the dims `first … first + width` only."""
    ahead = first + width - len(operand.shape)
    at = {}
    for dim, size in enumerate(operand.shape):
        if size != 1 and size != box.shape[ahead + dim]:
            raise Unknown("sizes that broadcast only for some lengths")
        at[dim] = Affine(0) if size == 1 else index(ahead + dim)
    return at_index(operand, at, box)
