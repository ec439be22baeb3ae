"""Workspace of convolutions on the CPU: oneDNN's blocked layouts, or ATen's column matrix."""

from __future__ import annotations

from math import prod

import torch

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import (
    Call,
    copied_unless_channels_last,
    is_channels_last,
    is_contiguous,
    nbytes,
    numel,
)

BLOCK = 16
"""Channels per block of oneDNN's layout with 512-bit vectors; with fewer input channels it reads
the plain layout."""

COLUMNS = 1_200_000
"""Bytes of columns, at most, when oneDNN falls back to a GEMM."""

_SMALL = 20480
"""Elements of an input up to which ATen prefers its own kernel."""


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
    small = (
        x.dtype is torch.float32
        and groups == 1
        and int(x.shape[0]) == 1
        and numel(x) <= _SMALL
        and not (len(kernel) > 1 and min(kernel[-2:]) > 3)
    )
    if small or not _onednn_has(x.dtype):
        return _columns(call, x, kernel, groups, transposed)
    return _transposed(call, x, weight) if transposed else _blocked(call, x, weight, kernel, groups)


def _columns(
    call: Call, x: TensorInfo, kernel: tuple[int, ...], groups: int, transposed: bool
) -> int:
    """One column of the kernel's size per output position and channel, of the whole batch; with
    groups, one group's and the outputs before they are joined."""
    plain = all(size == 1 for size in kernel) and not transposed
    at = x if transposed else call.out
    channels = int((call.out if transposed else x).shape[1])
    positions = prod(int(s) for s in at.shape[2:]) * int(x.shape[0])
    columns = 0 if plain else channels * prod(kernel) * positions * x.dtype.itemsize // groups
    joined = nbytes(call.out) if groups > 1 else 0
    return columns + joined + copied_unless_channels_last(x)


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
    if any(is_channels_last(t) and not is_contiguous(t) for t in (x, weight)):
        # Read and written in place; only the weight is laid out anew, by way of channels last.
        turned = sum(0 if is_channels_last(t) else nbytes(t) for t in (x, weight))
        return weights + turned + 4 * 2 * BLOCK * c_in
    copy = copied_unless_channels_last(x)
    blocked_out = _up(c_out) * per_out * item
    if (groups > 1 and c_out % c_in == 0 and groups == c_in and not depthwise) or kernel[-1] > 30:
        return max(copy + min(COLUMNS * call.threads // 2, _im2col(call, x, kernel)), out)
    blocked_in = 0 if c_in < BLOCK else _up(c_in) * per_in * item
    live = copy + blocked_in + weights + blocked_out - out
    return max(live, copy + blocked_out)


def _im2col(call: Call, x: TensorInfo, kernel: tuple[int, ...]) -> int:
    return int(x.shape[1]) * prod(kernel) * (numel(call.out) // int(call.out.shape[1])) * 4


def _transposed(call: Call, x: TensorInfo, weight: TensorInfo) -> int:
    """oneDNN's scratchpad (twice the input and half the weight), its input, weight and output;
    then the output twice more."""
    out, given = nbytes(call.out), nbytes(x)
    live = 3 * given + nbytes(weight) * 3 // 2 + copied_unless_channels_last(x)
    return max(live, 2 * out)
