"""ONNX ops on torch: shapes, joins and indexing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as nn

from quire.capture.onnx_table import DTYPES, Node, op
from quire.errors import CaptureError


@op("Shape")
def shape(n: Node, x: Tensor) -> Any:
    sizes = list(x.shape)[n.get("start", 0) : n.get("end")]
    fixed = all(isinstance(s, int) for s in sizes)
    out = np.empty(len(sizes), dtype=np.int64 if fixed else object)
    out[:] = sizes
    return out


@op("Size")
def size(n: Node, x: Tensor) -> Any:
    return np.asarray(x.numel())


@op("Reshape", static=(1,))
def reshape(n: Node, x: Tensor, to: Any = None) -> Tensor:
    sizes = list(to if to is not None else n.get("shape"))
    if not n.get("allowzero", 0):
        sizes = [x.shape[k] if isinstance(s, int) and s == 0 else s for k, s in enumerate(sizes)]
    return x.reshape(sizes)


@op("Flatten")
def flatten(n: Node, x: Tensor) -> Tensor:
    axis = n.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1) if axis else x.reshape(1, -1)


@op("Transpose")
def transpose(n: Node, x: Tensor) -> Tensor:
    return x.permute(n.get("perm") or tuple(range(x.ndim))[::-1])


@op("Squeeze", static=(1,))
def squeeze(n: Node, x: Tensor, axes: Any = None) -> Tensor:
    axes = n.get("axes") if axes is None else axes
    if axes is None:
        axes = [d for d, s in enumerate(x.shape) if s == 1]
    return x.squeeze(tuple(axes))


@op("Unsqueeze", static=(1,))
def unsqueeze(n: Node, x: Tensor, axes: Any = None) -> Tensor:
    axes = n.get("axes") if axes is None else axes
    axes = [axes] if isinstance(axes, int) else list(axes)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("Expand", static=(1,))
def expand(n: Node, x: Tensor, to: Any) -> Tensor:
    sizes = [1] * (x.ndim - len(to)) + list(to)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [o if isinstance(s, int) and s == 1 else s for s, o in zip(sizes, own, strict=True)]
    return x.expand(sizes)


@op("Tile", static=(1,))
def tile(n: Node, x: Tensor, times: Any) -> Tensor:
    return x.repeat(times)


@op("Concat")
def concat(n: Node, *xs: Tensor) -> Tensor:
    return torch.cat(xs, n.get("axis"))


@op("Split", static=(1,))
def split(n: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = n.get("axis", 0)
    sizes = n.get("split") if sizes is None else sizes
    if sizes is None:
        parts, size = n.get("num_outputs", n.outs), x.shape[axis]
        each = -(-size // parts)
        sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    return torch.split(x, list(sizes), axis)


@op("Slice", static=(1, 2, 3, 4))
def slice_(n: Node, x: Tensor, *rest: Any) -> Tensor:
    starts, ends = rest[:2] if rest else (n.get("starts"), n.get("ends"))
    axes = (rest[2] if len(rest) > 2 else n.get("axes")) or list(range(len(starts)))
    steps = rest[3] if len(rest) > 3 and rest[3] else [1] * len(starts)
    for axis, a, b, by in zip(axes, starts, ends, steps, strict=True):
        if by < 0:
            size = x.shape[axis]
            first, last, _ = slice(a, b, by).indices(size)
            x = x.flip(axis)
            a, b, by = size - 1 - first, size - 1 - last, -by
        at: list[Any] = [slice(None)] * x.ndim
        at[axis] = slice(a, b, by)
        x = x[tuple(at)]
    return x


@op("Pad", static=(1, 3))
def pad(n: Node, x: Tensor, amounts: Any = None, fill: Any = None, axes: Any = None) -> Tensor:
    amounts = n.get("pads") if amounts is None else amounts
    axes = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes]
    mode, k = n.get("mode", "constant"), len(axes)
    if mode == "constant":
        value = n.get("value", 0.0) if fill is None else fill
        for axis, a, b in zip(axes, amounts[:k], amounts[k:], strict=True):
            parts = [x.narrow(axis, max(0, -a), x.shape[axis] - max(0, -a) - max(0, -b))]
            for count, where_ in ((a, 0), (b, len(parts))):
                if count > 0:
                    sizes = [count if d == axis else s for d, s in enumerate(x.shape)]
                    block = torch.zeros(sizes, dtype=x.dtype)
                    block = (
                        block + value
                        if not isinstance(value, Tensor)
                        else block + value.reshape(())
                    )
                    parts.insert(where_ if where_ == 0 else len(parts), block.to(x.dtype))
            x = torch.cat(parts, axis) if len(parts) > 1 else parts[0]
        return x
    for axis, a, b in zip(axes, amounts[:k], amounts[k:], strict=True):
        size = x.shape[axis]
        at = torch.arange(-a, size + b)
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "reflect":
            turn = max(1, 2 * size - 2)
            at = (size - 1) - ((at % turn) - (size - 1)).abs()
        else:
            at = at % size
        x = x.index_select(axis, at)
    return x


@op("ConstantOfShape", static=(0,))
def constant_of_shape(n: Node, sizes: Any) -> Tensor:
    value = n.get("value")
    fill = 0.0 if value is None else numpy_helper.to_array(value).ravel()[0].item()
    return torch.full(
        sizes, fill, dtype=torch.float32 if value is None else DTYPES[value.data_type]
    )


@op("Range", static=(0, 1, 2))
def range_(n: Node, start: Any, limit: Any, delta: Any) -> Tensor:
    return torch.arange(start, limit, delta)


@op("EyeLike")
def eye_like(n: Node, x: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]
    dtype = DTYPES[n.get("dtype")] if n.get("dtype") else x.dtype
    return (columns - rows == n.get("k", 0)).to(dtype)


@op("DepthToSpace")
def depth_to_space(n: Node, x: Tensor) -> Tensor:
    (batch, depth, rows, columns), b = x.shape, n.get("blocksize")
    if n.get("mode", "DCR") == "DCR":
        x = x.reshape(batch, b, b, depth // (b * b), rows, columns).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(batch, depth // (b * b), b, b, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, depth // (b * b), rows * b, columns * b)


@op("SpaceToDepth")
def space_to_depth(n: Node, x: Tensor) -> Tensor:
    (batch, depth, rows, columns), b = x.shape, n.get("blocksize")
    x = x.reshape(batch, depth, rows // b, b, columns // b, b)
    order = (0, 1, 3, 5, 2, 4) if n.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return x.permute(order).reshape(batch, depth * b * b, rows // b, columns // b)


@op("Trilu", static=(1,))
def trilu(n: Node, x: Tensor, k: Any = None) -> Tensor:
    return (torch.triu if n.get("upper", 1) else torch.tril)(x, int(k or 0))


# --- indexing ---------------------------------------------------------------------------------


def _from_end(at: Tensor, size: Any) -> Tensor:
    return torch.where(at < 0, at + size, at).long()


@op("Gather")
def gather(n: Node, x: Tensor, at: Tensor) -> Tensor:
    axis = n.get("axis", 0) % x.ndim
    at = _from_end(at, x.shape[axis])
    if axis == 0 and x.ndim == 2 and at.ndim:
        return nn.embedding(at, x)
    return x[(slice(None),) * axis + (at,)]


@op("GatherElements")
def gather_elements(n: Node, x: Tensor, at: Tensor) -> Tensor:
    axis = n.get("axis", 0)
    return x.gather(axis, _from_end(at, x.shape[axis]))


@op("GatherND")
def gather_nd(n: Node, x: Tensor, at: Tensor) -> Tensor:
    batch = n.get("batch_dims", 0)
    lead = [
        torch.arange(x.shape[d]).reshape([-1 if k == d else 1 for k in range(at.ndim - 1)])
        for d in range(batch)
    ]
    picks = [_from_end(p, x.shape[batch + k]) for k, p in enumerate(at.unbind(-1))]
    return x[(*lead, *picks)]


def _folded(x: Tensor, hit: Tensor, new: Tensor, how: str) -> Tensor:
    """`x` [..., N] with each new[..., m] folded in where hit[..., N, m] says."""
    new = new.unsqueeze(-2)
    if how == "add":
        return x + torch.where(hit, new, 0).sum(-1)
    if how == "mul":
        parts = torch.where(hit, new, 1)
        return x * parts.cumprod(-1)[..., -1]
    kept = torch.where(hit, new, x.unsqueeze(-1))
    return torch.maximum(x, kept.amax(-1)) if how == "max" else torch.minimum(x, kept.amin(-1))


@op("ScatterElements Scatter")
def scatter_elements(n: Node, x: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """A reduction compares every place with every index: costly, but duplicates count."""
    axis, how = n.get("axis", 0) % x.ndim, n.get("reduction", "none")
    at = _from_end(at, x.shape[axis])
    if how == "none":
        return x.scatter(axis, at, new)
    if any(at.shape[d] != x.shape[d] for d in range(x.ndim) if d != axis):
        raise CaptureError(f"ScatterElements with reduction {how} into a part of a tensor")
    x, at, new = (t.movedim(axis, -1) for t in (x, at, new))
    hit = at.unsqueeze(-2) == torch.arange(x.shape[-1])[:, None]
    return _folded(x, hit, new, how).movedim(-1, axis)


@op("ScatterND")
def scatter_nd(n: Node, x: Tensor, at: Tensor, new: Tensor) -> Tensor:
    """On rows: the leading dims that an index spans become one."""
    depth, how = at.shape[-1], n.get("reduction", "none")
    rows = math.prod(x.shape[:depth])
    place: Any = 0
    for k, part in enumerate(at.unbind(-1)):
        place = place * x.shape[k] + _from_end(part, x.shape[k])
    place, flat = place.reshape(-1), x.reshape(rows, -1)
    new = new.reshape(place.shape[0], -1)
    if how == "none":
        out = flat.scatter(0, place[:, None].expand(new.shape), new)
    else:
        hit = place == torch.arange(rows)[:, None]
        out = _folded(flat.T, hit, new.T, how).T
    return out.reshape(x.shape)


@op("OneHot", static=(1,))
def one_hot(n: Node, at: Tensor, depth: Any, values: Tensor) -> Tensor:
    depth = int(depth[0] if isinstance(depth, list) else depth)
    axis = n.get("axis", -1) % (at.ndim + 1)
    at = at.to(torch.int64).unsqueeze(axis)
    at = torch.where(at < 0, at + depth, at)
    places = torch.arange(depth).reshape([-1 if d == axis else 1 for d in range(at.ndim)])
    return torch.where(at == places, values[1], values[0])


@op("Einsum")
def einsum(n: Node, *xs: Tensor) -> Tensor:
    return torch.einsum(n.get("equation").replace(" ", ""), *xs)
