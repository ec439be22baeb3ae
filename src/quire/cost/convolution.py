"""Workspace of convolutions on the CPU: oneDNN's blocked layouts, or ATen's column matrix."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import (
    Call,
    copied,
    copied_unless_channels_last,
    is_channels_last,
    is_contiguous,
    nbytes,
    numel,
    on_matrix_unit,
)

BLOCK = 16
"""Channels per block of oneDNN's layout with 512-bit vectors; with fewer input channels it reads
the plain layout."""

COLUMNS = 800_000
"""Bytes of columns per thread, at most, when oneDNN falls back to a GEMM with 1 MiB of L2 cache."""

SCRATCH = 1 << 20
"""Bytes per thread, at most, of a bfloat16 convolution on a matrix unit."""

_SMALL = 20480
"""Elements of an input up to which ATen prefers its own kernel."""


@cache
def _l2_bytes() -> int:
    """Of a core's L2 cache; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.removesuffix("K")) << 10
    return 0


def _up(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


def _onednn_has(dtype: torch.dtype) -> bool:
    if dtype is torch.float32:
        return torch.backends.mkldnn.is_available()
    if dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype is torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def convolution(call: Call) -> int:
    x, weight = call["input"], call["weight"]
    groups = int(call.op.get("groups") or 1)
    transposed = "transpose" in call.name or bool(call.op.get("transposed"))
    kernel = tuple(int(s) for s in weight.shape[2:])
    # Where ATen prefers kernels of its own: small inputs, and plain products on one thread.
    own = (
        x.dtype is torch.float32
        and groups == 1
        and int(x.shape[0]) == 1
        and numel(x) <= _SMALL
        and not (len(kernel) > 1 and min(kernel[-2:]) > 3)
    ) or (
        x.dtype is torch.float32
        and set(kernel) == {1}
        and _all(call.op.get("stride") or 1, 1)
        and (call.threads == 1 or len(kernel) == 3)
    )
    if own or not _onednn_has(x.dtype):
        return _columns(call, x, weight, kernel, groups, transposed)
    if transposed:
        return _transposed(call, x, weight)
    blocked = _blocked(call, x, weight, kernel, groups)
    return max(blocked, _native(call, x, weight)) if on_matrix_unit(x.dtype) else blocked


def _native(call: Call, x: TensorInfo, weight: TensorInfo) -> int:
    """Channels last in and out: first the input, the weight and each thread's blocks, then the
    output twice. An upper bound."""
    scratch = SCRATCH if x.dtype is torch.bfloat16 else SCRATCH >> 8
    first = nbytes(x) + nbytes(weight) + call.threads * scratch
    return max(first, 2 * nbytes(call.out)) + copied_unless_channels_last(x)


def _column_bytes(c_in: int, c_out: int, taps: int, groups: int) -> int:
    """Bytes of columns per thread, at most: of so many positions that columns, input and output lie
    in the L2 cache beside the weight; a sixteenth more, as threads' shares are rounded."""
    floats = _l2_bytes() // 4 - c_in * c_out * taps
    if groups > 1 or floats <= 0:
        return COLUMNS * max(_l2_bytes() >> 20, 1)
    columns = floats // (c_in * taps + c_in + c_out) * c_in * taps * 4
    return max(COLUMNS, columns * 17 // 16)


def _is_product(call: Call, kernel: tuple[int, ...]) -> bool:
    """Whether each output position is a matrix times one input position."""
    stride, padding = call.op.get("stride") or 1, call.op.get("padding") or 0
    return set(kernel) == {1} and _all(stride, 1) and (padding == "valid" or _all(padding, 0))


def _all(sizes: Any, value: int) -> bool:
    return all(s == value for s in sizes) if isinstance(sizes, list | tuple) else sizes == value


def _columns(
    call: Call,
    x: TensorInfo,
    weight: TensorInfo,
    kernel: tuple[int, ...],
    groups: int,
    transposed: bool,
) -> int:
    """One column of the kernel's size per output position and channel, of the whole batch; with
    groups, one group's and the outputs before they are joined."""
    plain = _is_product(call, kernel) and not transposed
    at = x if transposed else call.out
    channels = int((call.out if transposed else x).shape[1])
    positions = prod(int(s) for s in at.shape[2:]) * int(x.shape[0])
    columns = 0 if plain else channels * prod(kernel) * positions * x.dtype.itemsize // groups
    joined = nbytes(call.out) if groups > 1 else 0
    if _is_turned(x) or _is_turned(weight):
        return columns + joined + sum(0 if is_channels_last(t) else nbytes(t) for t in (x, weight))
    return columns + joined + copied(x)


def _is_turned(info: TensorInfo) -> bool:
    """Whether a convolution runs channels last for this operand."""
    return is_channels_last(info) and not is_contiguous(info)


def _blocked(
    call: Call, x: TensorInfo, weight: TensorInfo, kernel: tuple[int, ...], groups: int
) -> int:
    """Input, weight and output in blocks of 16 channels; the output's plain form follows when
    the first two are gone."""
    c_in, c_out, item = int(x.shape[1]), int(call.out.shape[1]), x.dtype.itemsize
    depthwise = groups == c_in == c_out
    out = nbytes(call.out)
    per_in, per_out = numel(x) // c_in, numel(call.out) // c_out
    if depthwise:
        weights = _up(c_out) * prod(kernel) * item
    else:
        inputs = c_in // groups
        weights = _up(c_out) * (_up(inputs) if inputs >= BLOCK else inputs) * prod(kernel) * item
    if _is_turned(x) or _is_turned(weight):
        # Read and written in place; only the weight is laid out anew, by way of channels last.
        turned = sum(0 if is_channels_last(t) else nbytes(t) for t in (x, weight))
        return weights + turned + 4 * 2 * BLOCK * c_in
    copy = copied_unless_channels_last(x)
    blocked_out = _up(c_out) * per_out * item
    multiplied = groups > 1 and groups == c_in and not depthwise
    if multiplied or kernel[-1] > 30:
        most = _column_bytes(c_in, c_out, prod(kernel), groups)
        columns = min(most, c_in * prod(kernel) * per_out * 4) * call.threads
        return max(copy + columns, copy + blocked_out)
    blocked_in = 0 if c_in < BLOCK else _up(c_in) * per_in * item
    scratch = 0
    if set(kernel) == {1}:
        batch = int(x.shape[0])
        if not _all(call.op.get("stride") or 1, 1):
            # Each thread gathers the input positions that are read.
            scratch = call.threads * _up(c_in) * per_out // batch * item
        if x.dtype is torch.bfloat16:
            scratch += call.threads * 4 * numel(call.out) // batch
    live = copy + scratch + blocked_in + weights + blocked_out - out
    return max(live, copy + blocked_out)


def _transposed(call: Call, x: TensorInfo, weight: TensorInfo) -> int:
    """oneDNN's scratchpad (per thread the input and a border), its input, weight and output; then
    the output twice more."""
    border = (16 << 10) * (1 + prod(max(int(k) - 1, 1) for k in weight.shape[2:]))
    out, given = nbytes(call.out), nbytes(x)
    live = call.threads * (given + border) + given + nbytes(weight)
    return max(live, 2 * out) + copied_unless_channels_last(x)
