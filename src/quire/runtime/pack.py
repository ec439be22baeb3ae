"""Weights in the layout a kernel reads: as they are, with dims reordered, or in blocks.

Those in blocks of 32 rows by 32 columns (kernel/rt/types.hpp) are held exactly (lossless.py), or
quantised with a bf16 scale for each row of a block. int8: scale = max |w| / 127. int4: −8 … 7,
scale = the largest-magnitude weight / −8 (as llama.cpp's Q4_0). The kernel computes with the
dequantised weights exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from quire.kernel.ir import BLOCKS, SPAN, Buffer, blocks
from quire.runtime import lossless

ZERO = {"int8": 128, "int4": 8}
"""What a weight of 0 is held as."""


def packed(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """`weight` itself, or a copy in the layout of `buffer`."""
    if buffer.order:
        weight = weight.permute(buffer.order).contiguous()
    if not buffer.scheme:
        return weight
    if buffer.scheme == "lossless":
        return lossless.packed(_blocks(weight))
    values, scale = _quantised(_blocks(weight.float()), buffer.scheme)
    held = (values + ZERO[buffer.scheme]).to(torch.uint8)
    words = held.unflatten(3, (-1, 4)).transpose(2, 3)  # [.., columns / 4, rows, 4]
    if buffer.scheme == "int4":
        low, high = words.unflatten(2, (-1, 2)).unbind(3)
        words = low | high << 4
    return torch.cat([words.flatten(2), scale.contiguous().view(torch.uint8)], 2)


def packed_size(weight: torch.Tensor, buffer: Buffer) -> int:
    """Bytes of a copy of `weight` in the layout of `buffer`, 0 where it is read as it is."""
    if buffer.scheme == "lossless":
        return lossless.packed_size(_blocks(weight.permute(buffer.order)))
    if buffer.scheme:
        columns = weight.shape[buffer.order[-1]]
        return blocks(weight.numel() // columns, columns) * BLOCKS[buffer.scheme]
    return weight.numel() * weight.element_size() if buffer.order else 0


def _blocks(weight: torch.Tensor) -> torch.Tensor:
    """[blocks below, blocks beside, 32 rows, 32 columns] of the rows of `weight`."""
    rows = weight.flatten(0, -2)
    rows = nn.functional.pad(rows, (0, 0, 0, -len(rows) % SPAN))
    return rows.unflatten(1, (-1, SPAN)).unflatten(0, (-1, SPAN)).transpose(1, 2)


def _quantised(weights: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [.., 32 rows, 32 columns], and bf16 scales [.., 32 rows]."""
    if scheme == "int8":
        scale = (weights.abs().amax(3) / 127).to(torch.bfloat16)
        least, most = -127, 127
    else:
        largest = weights.gather(3, weights.abs().argmax(3, keepdim=True))[..., 0]
        scale, least, most = (largest / -8).to(torch.bfloat16), -8, 7
    by = scale.float()
    by = torch.where(by.abs() < torch.finfo(torch.float32).tiny, 0, 1 / by)[..., None]
    return (weights * by).round().clamp(least, most), scale


def dequantised(weight: torch.Tensor, buffer: Buffer) -> torch.Tensor:
    """The float32 weights that a buffer in blocks stands for, in the shape of `weight`."""
    if buffer.scheme == "lossless":
        return weight.float()
    laid = weight.permute(buffer.order) if buffer.order else weight
    values, scale = _quantised(_blocks(laid.float()), buffer.scheme)
    rows = (values * scale.float()[..., None]).transpose(1, 2).flatten(2).flatten(0, 1)
    out = rows[: laid.numel() // laid.shape[-1]].reshape(laid.shape)
    if buffer.order:
        back = [buffer.order.index(k) for k in range(len(buffer.order))]
        out = out.permute(back).contiguous()
    return out
