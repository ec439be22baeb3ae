"""Scratch memory of CPU kernels: what an op allocates while it runs, beyond its outputs.

A row per family of ops; contractions, convolutions and attention stand in files of their own. The
formulas follow ATen's and oneDNN's behaviour as `tools/workspace_oracle.py` measures it (torch
2.13): upper bounds, within 10 % where they exceed a megabyte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from quire.capture.program import Op, TensorInfo
from quire.cost.attention import attention
from quire.cost.contraction import addmm, bmm, einsum, linear, matmul, mm
from quire.cost.convolution import convolution
from quire.cost.kernel_call import (
    Call,
    copied,
    copied_unless_channels_last,
    is_contiguous,
    is_low,
    lies_channels_last,
    nbytes,
    numel,
    recast,
)

aten = torch.ops.aten

SMALL = 16 << 10
"""Bytes granted to every op that is no view: scalars, reduction buffers, per-thread rows."""


def workspace_bytes(
    op: Op, operands: Sequence[TensorInfo], outputs: Sequence[TensorInfo], threads: int
) -> int:
    """An upper bound of the bytes that the CPU kernel of `op` allocates above its outputs.

    `operands` and `outputs` have int sizes and the strides they will really have; `operands` are
    in the order of `op.operands`.
    """
    if op.is_view:
        return 0
    call = Call(op, tuple(operands), tuple(outputs), threads)
    if any(numel(info) == 0 for info in outputs):
        return SMALL
    row = _rows.get(getattr(op.target, "overloadpacket", op.target), _default)
    return row(call) + SMALL


Row = Callable[[Call], int]
_rows: dict[Any, Row] = {}


def _row(names: str) -> Callable[[Row], Row]:
    """Register the row of the ops named in `names`, separated by blanks."""

    def register(row: Row) -> Row:
        for name in names.split():
            if hasattr(aten, name):
                _rows[getattr(aten, name)] = row
        return row

    return register


def _default(call: Call) -> int:
    """Pointwise ops cast operands to the common dtype; of an unknown op it is assumed that it
    copies what is not contiguous."""
    if torch.Tag.pointwise in getattr(call.op.target, "tags", ()):
        return _pointwise(call)
    return sum(copied(x) for x in call.operands)


@_row(
    "clone contiguous copy _to_copy to lift_fresh_copy expand_copy reshape cumprod outer dot "
    "index index_select gather take embedding take_along_dim index_put index_copy index_add "
    "scatter scatter_add scatter_reduce select_scatter slice_scatter bucketize searchsorted "
    "stack repeat repeat_interleave tril triu flip constant_pad_nd pad one_hot scalar_tensor "
    "amax amin max min argmax argmin any all var var_mean std linalg_vector_norm norm "
    "arange full zeros ones empty rand randn randint full_like zeros_like ones_like empty_like "
    "new_zeros new_ones new_full new_empty split split_with_sizes unbind chunk tensor_split "
    "upsample_bicubic2d "
    "pixel_shuffle pixel_unshuffle _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d "
    "native_batch_norm _native_batch_norm_legit_no_training"
)
def _free(_: Call) -> int:
    return 0


# Element by element ---------------------------------------------------------------------------


@_row("hardswish hardsigmoid hardtanh leaky_relu elu softplus")
def _pointwise(call: Call) -> int:
    """TensorIterator copies every operand whose dtype is not the one it computes in."""
    operands = [x for x in call.operands if x.ndim]
    common = operands[0].dtype if operands else call.out.dtype
    for x in operands:
        common = torch.promote_types(common, x.dtype)
    if call.out.dtype.is_floating_point:
        common = torch.promote_types(common, call.out.dtype)
    return sum(recast(x, common) for x in operands)


@_row("where masked_fill")
def _choice(call: Call) -> int:
    """The condition is no operand of the arithmetic."""
    return sum(
        recast(x, call.out.dtype) for x in call.operands if x.ndim and x.dtype is not torch.bool
    )


@_row("logical_and logical_or logical_xor logical_not isnan")
def _any_dtype(_: Call) -> int:
    return 0


@_row("isinf isfinite")
def _absolute(call: Call) -> int:
    return 2 * nbytes(call.x) if call.name == "isfinite" else nbytes(call.x)


@_row("log_sigmoid log_sigmoid_forward")
def _log_sigmoid(call: Call) -> int:
    return nbytes(call.x) + copied(call.x)


# Normalisation ----------------------------------------------------------------------------------


@_row("layer_norm native_layer_norm")
def _layer_norm(call: Call) -> int:
    """Contiguous copies, and mean and reciprocal deviation of each row."""
    rows = numel(call.x) // max(int(call.x.shape[-1]), 1)
    stats = 0 if call.name == "native_layer_norm" else 2 * max(4, call.x.dtype.itemsize) * rows
    return sum(copied(x) for x in call.operands) + stats


@_row("rms_norm _fused_rms_norm")
def _rms_norm(call: Call) -> int:
    """No kernel: pow, mean, rsqrt, mul, mul; float32 inside for the 16-bit dtypes."""
    count, rows = numel(call.x), numel(call.x) // max(int(call.x.shape[-1]), 1)
    inner = 4 if is_low(call.x.dtype) else call.x.dtype.itemsize
    weighted = call.op.get("weight") is not None
    if is_low(call.x.dtype):
        # Input, normed and (weighted) product in float32; then the output, when one is gone.
        live = (3 if weighted else 2) * inner * count
        return live - nbytes(call.out) + (rows + int(call.x.shape[-1])) * inner
    return (inner * count if weighted else 0) + 2 * inner * rows


@_row("softmax _softmax log_softmax _log_softmax _safe_softmax")
def _softmax(call: Call) -> int:
    """The input in the output's dtype, and that contiguous; a bool per element to find rows that
    are all −∞."""
    extra = numel(call.x) * 9 // 8 if call.name == "_safe_softmax" else 0
    return recast(call.x, call.out.dtype) + copied(call.x, call.out.dtype.itemsize) + extra


@_row("group_norm native_group_norm batch_norm instance_norm _batch_norm_impl_index")
def _group_norm(call: Call) -> int:
    channels = int(call.x.shape[0]) * int(call.x.shape[1]) if call.x.ndim > 1 else 1
    return 6 * max(4, call.x.dtype.itemsize) * channels + (
        copied_unless_channels_last(call.x) if "group" in call.name else 0
    )


# Reductions, scans, order -----------------------------------------------------------------------


@_row("sum mean cumsum prod nansum")
def _sums(call: Call) -> int:
    """Summed in the output's dtype; a 16-bit mean in float32, with a divisor."""
    wide = call.out.dtype
    if call.name == "mean" and is_low(wide):
        wide = torch.float32
    elif call.name in ("sum", "nansum") and is_low(wide):
        wide = call.x.dtype
    return recast(call.x, wide) + (2 * 4 * numel(call.out) if wide is not call.out.dtype else 0)


@_row("logsumexp")
def _logsumexp(call: Call) -> int:
    return nbytes(call.x) + 4 * nbytes(call.out)


@_row("sort argsort")
def _sort(call: Call) -> int:
    """An index row per thread; the values, where only indices are asked for; both once more in
    the radix sort of integers."""
    length = _length(call)
    per_row = 8 if call.x.dtype.is_floating_point else 16
    values = nbytes(call.x) if call.name == "argsort" else 0
    return per_row * length * min(call.threads, numel(call.x) // max(length, 1)) + values


@_row("topk kthvalue")
def _topk(call: Call) -> int:
    """A vector of (value, position) per thread, outside the allocator."""
    length = _length(call)
    return 16 * length * min(call.threads, numel(call.x) // max(length, 1))


def _length(call: Call) -> int:
    return int(call.x.shape[call.op.get("dim", -1)]) if call.x.ndim else 1


# Moving -----------------------------------------------------------------------------------------


@_row("cat concat")
def _cat(call: Call) -> int:
    return max((nbytes(x) for x in call.operands if x.dtype is not call.out.dtype), default=0)


@_row("roll")
def _roll(call: Call) -> int:
    """One dim after another."""
    return nbytes(call.x) if len(call.op.get("shifts") or ()) > 1 else 0


@_row("upsample_nearest1d _upsample_nearest_exact1d upsample_linear1d")
def _resize1d(call: Call) -> int:
    """Indices and weights of every output position."""
    return 24 * int(call.out.shape[-1])


@_row("upsample_nearest2d _upsample_nearest_exact2d")
def _nearest(call: Call) -> int:
    """The kernel for channels last runs on an input that lies so, and the output is turned if its
    strides, where a dim has size 1, were taken to be another layout's."""
    turned = lies_channels_last(call.x) and not is_contiguous(call.x)
    return nbytes(call.out) if turned and not lies_channels_last(call.out) else 0


@_row("upsample_bilinear2d")
def _bilinear(call: Call) -> int:
    """Three channels on one thread: by way of channels last, and back."""
    if call.threads > 1 or int(call.x.shape[1]) != 3:
        return 24 * sum(int(s) for s in call.out.shape[2:]) + _nearest(call)
    return nbytes(call.x) + nbytes(call.out)


@_row("_upsample_bilinear2d_aa _upsample_bicubic2d_aa")
def _antialias(call: Call) -> int:
    """Columns first, into an intermediate; then rows."""
    n, c, height, _ = (int(s) for s in call.x.shape)
    return n * c * height * int(call.out.shape[-1]) * call.x.dtype.itemsize + copied(call.x)


@_row(
    "avg_pool1d max_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices "
    "reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d"
)
def _pool(call: Call) -> int:
    return copied_unless_channels_last(call.x)


@_row("max_pool2d")
def _max_pool(call: Call) -> int:
    """The positions of the maxima, thrown away."""
    return copied_unless_channels_last(call.x) + 8 * numel(call.out)


@_row("im2col")
def _unfold(call: Call) -> int:
    return nbytes(call.x)


@_row("cdist _cdist_forward")
def _cdist(call: Call) -> int:
    """Both operands with their squared norms appended, for one matrix product."""
    return sum(nbytes(x) + 4 * nbytes(x) // max(int(x.shape[-1]), 1) for x in call.operands)


@_row("cosine_similarity")
def _cosine(call: Call) -> int:
    return 3 * max(nbytes(x) for x in call.operands) + 3 * nbytes(call.out)


# In files of their own --------------------------------------------------------------------------

_row("linear")(linear)
_row("addmm")(addmm)
_row("mm")(mm)
_row("bmm baddbmm")(bmm)
_row("matmul")(matmul)
_row("einsum")(einsum)
_row("scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu")(attention)
_row("conv1d conv2d conv3d convolution _convolution mkldnn_convolution")(convolution)
_row("conv_transpose1d conv_transpose2d conv_transpose3d")(convolution)
