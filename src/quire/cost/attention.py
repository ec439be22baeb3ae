"""Workspace of scaled dot product attention on the CPU: ATen's flash kernel, or the plain way.

The block sizes are those of `aten/src/ATen/native/cpu/FlashAttentionKernel.cpp`.
"""

from __future__ import annotations

import torch

from quire.capture.program import TensorInfo
from quire.cost.kernel_call import Call, copied, is_low, merges, nbytes, numel

KEY_BLOCK, PACK = 512, 64


def query_block(rows: int) -> int:
    """Query rows that one thread takes at once."""
    return min(rows, 256 if rows >= 768 else 64 if rows >= 192 else 32)


def attention(call: Call) -> int:
    query, key, value = call["query"], call["key"], call["value"]
    mask = call.find("attn_mask")
    if uses_flash(call, query, key, value):
        return _flash(call, query, key) + _mask_bytes(query, mask)
    return _plain(call, query, key, value, mask)


def uses_flash(call: Call, query: TensorInfo, key: TensorInfo, value: TensorInfo) -> bool:
    """Whether the CPU takes the fused kernel: four dims, one head width, elements of a head side
    by side, no dropout."""
    return (
        query.ndim == key.ndim == value.ndim == 4
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and all(int(t.stride[-1]) == 1 for t in (query, key, value))
        and not call.op.get("dropout_p")
        and min(numel(query), numel(key)) > 0
    )


def _flash(call: Call, query: TensorInfo, key: TensorInfo) -> int:
    """Per thread a block of scores, two statistics a row, a block of output; the logarithms of
    the sums; for 16-bit dtypes the scores once more, rounded."""
    batch, heads, rows, width = (int(s) for s in query.shape)
    keys = int(key.shape[-2])
    block, width_of_keys = query_block(rows), min(KEY_BLOCK, keys)
    wide = max(4, query.dtype.itemsize)
    per_thread = block * (width_of_keys + 2 + width) * wide
    packed = 0
    if is_low(query.dtype):
        per_thread += block * (width_of_keys + 1) * 2
    if query.dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        # Keys and values laid out for the matrix unit, head by head, by way of a block of keys.
        even, blocks = width + width % 2, -(-keys // KEY_BLOCK)
        wide_keys, wide_head = -(-keys // PACK) * PACK, -(-width // PACK) * PACK
        packed = batch * heads * (even * wide_keys + (keys + blocks) * wide_head) * 2
        per_thread += width_of_keys * PACK * 2 + block * even * 2 * (width % 2)
    return call.threads * per_thread + batch * heads * rows * wide + packed


def _mask_bytes(query: TensorInfo, mask: TensorInfo | None) -> int:
    """A bool mask becomes one of the queries' dtype; a mask must have neighbouring keys."""
    if mask is None:
        return 0
    if mask.dtype is torch.bool:
        return numel(mask) * query.dtype.itemsize
    strided = int(mask.stride[-1]) not in (0, 1) and int(mask.shape[-1]) > 1
    return nbytes(mask) if strided else 0


def _plain(
    call: Call, query: TensorInfo, key: TensorInfo, value: TensorInfo, mask: TensorInfo | None
) -> int:
    """Scaled queries and keys, scores, their softmax, a bool per score for rows all masked."""
    wide = 4 if is_low(query.dtype) else query.dtype.itemsize
    rows, keys = int(query.shape[-2]), int(key.shape[-2])
    outer = numel(query) // max(rows * int(query.shape[-1]), 1)
    scores = outer * rows * keys
    heads = outer * keys
    kept = wide * numel(query)
    if is_low(query.dtype):
        kept += wide * (numel(query) + numel(key) + numel(value))
    keys_bytes = wide * heads * int(key.shape[-1])
    if numel(key) != heads * int(key.shape[-1]):
        kept += keys_bytes + wide * heads * int(value.shape[-1])
    if mask is not None and mask.dtype is torch.bool:
        kept += numel(mask) * query.dtype.itemsize
    elif call.op.get("is_causal"):
        kept += rows * keys * query.dtype.itemsize
    copies = 0
    if not merges(query, range(query.ndim - 2)):
        copies = wide * numel(query) + keys_bytes
    softmax = scores * (3 * wide if call.op.get("dropout_p") else 2 * wide + 1)
    multiply = copies + keys_bytes + scores * wide
    # The low dtypes' product: their probabilities rounded, the values' copy, the result twice.
    values = 0 if merges(value, range(value.ndim - 2)) else wide * heads * int(value.shape[-1])
    weigh = scores * wide + values + nbytes(call.out)
    if is_low(query.dtype):
        weigh += scores * 2 + wide * numel(call.out)
    peak = kept + max(softmax, multiply, weigh) + outer * rows
    return max(peak - nbytes(call.out), copied(query)) if peak > nbytes(call.out) else 0
